"""Creating a file of hidden states: whatever an interruption leaves, the finished file is right."""

import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transrec.data import states
from transrec.data.states import StateBuilder, StateFile

PROVENANCE = {"a": 1}
KILLED = 99


def finish_file(path, values):
    """Begin or continue a file, finish it and return its states; nothing else may be left in its folder."""
    builder = StateBuilder(path, tuple(values.shape), "fp32", PROVENANCE)
    builder.begin()
    for row in builder.pending_blocks(0, 1):
        builder.write_block(row, values[row : row + 256])
    builder.finish()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return torch.from_numpy(StateFile(path, PROVENANCE).states.copy())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_line_of_filling_is_made_good(tmp_path):
    values, kills, status = torch.randn(300, 1, 2), 0, KILLED
    while status == KILLED:
        path = tmp_path / str(kills) / "s.safetensors"
        path.parent.mkdir()
        lines = iter(range(kills))

        def kill(frame, event, _):
            # End like a killed process: the contents of Python's buffers are lost.
            writes = frame.f_code.co_filename == states.__file__ or frame.f_code is Path.write_bytes.__code__
            if writes and next(lines, None) is None:  # noqa: B023
                os._exit(KILLED)
            return kill

        if not (child := os.fork()):
            sys.settrace(kill)
            finish_file(path, values)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (KILLED, 0)
        if not path.exists():
            assert torch.equal(finish_file(path, values), values)
        kills += 1
    assert kills > 40


@settings(max_examples=150, deadline=None)
@given(
    done=st.sets(st.sampled_from([0, 256, 512])),
    length=st.one_of(st.just(1.0), st.floats(0, 1.2)),
    garbage=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=40)), max_size=4),
    begun_as=st.sampled_from([{"dtype": "fp32"}, {"dtype": "fp16"}, {"provenance": {"a": 2}}]),
)
def test_any_leftover_is_continued_or_begun_anew(done, length, garbage, begun_as):
    """A leftover may be cut, lengthened, full of garbage or of other states: the finished file is right."""
    values = torch.arange(1200.0).reshape(600, 1, 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "s.safetensors")
        leftover = StateBuilder(path, tuple(values.shape), **{"dtype": "fp32", "provenance": PROVENANCE, **begun_as})
        leftover.begin()
        for row in done:
            leftover.write_block(row, values[row : row + 256])
        content = bytearray(leftover.partial.read_bytes())
        for place, bytes_ in garbage:
            start = int(place * len(content))
            content[start : start + len(bytes_)] = bytes_
        size = int(length * len(content))
        leftover.partial.write_bytes(bytes(content[:size]).ljust(size, b"\1"))
        assert torch.equal(finish_file(path, values), values)


def test_what_is_no_file_is_begun_anew(tmp_path):
    values = torch.randn(300, 1, 2)
    partial = tmp_path / ".s.safetensors.partial"
    for make in (partial.mkdir, lambda: os.mkfifo(partial), lambda: partial.symlink_to("nowhere"), partial.touch):
        make()
        assert torch.equal(finish_file(tmp_path / "s.safetensors", values), values)
        (tmp_path / "s.safetensors").unlink()
