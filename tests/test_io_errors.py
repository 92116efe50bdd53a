"""If the system refuses disk space, permissions or memory, one line says what to do, and the run can continue."""

import errno
import os
import re
import subprocess
import sys
from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, encoder_flags
from safetensors.torch import load_file
from test_training import assert_same_run

from transrec.data import catalog
from transrec.data.catalog import cached_tokens
from transrec.data.images.build import build_store
from transrec.data.images.partial import Partial, Stored
from transrec.data.images.sources import ImageEntry
from transrec.data.images.store import ImageStore
from transrec.data.states import StateBuilder, StateFile
from transrec.errors import FileError, TransrecError
from transrec.models.backbone import load_tokenizer
from transrec.paths import file_sha256, make_folder, write_text
from transrec.training import checkpoint
from transrec.training.evaluation import Evaluator, Ranker
from transrec.training.run import Run, read_options
from transrec.training.trainer import Trainer

DESCRIPTION = checkpoint.Description("full", {}, {}, 0, checkpoint.Base(None, ""))
NUMBERS = ("EIO", "ENOSPC", "EDQUOT", "EACCES", "EROFS", "EFBIG", "EMFILE", "ESTALE")
ADVICE = {
    **dict.fromkeys(("ENOSPC", "EDQUOT"), "make room"),
    **dict.fromkeys(("EACCES", "EROFS"), "mend its permissions"),
    "EIO": "the disk or the connection to it fails",
    "EFBIG": "ulimit -f",
    "EMFILE": "ulimit -n",
    "ESTALE": "is not there",
}


@pytest.fixture
def refuse(monkeypatch):
    """Make a system call refuse files of a name from now on: `refuse("replace", "log.txt", errno.EIO)`."""

    def patch(call: str, name: str, number: int, when=lambda: True) -> None:
        def guarded(original, path_of, *arguments, **keywords):
            if re.search(name, str(path_of(*arguments))) and when():
                raise OSError(number, os.strerror(number))
            return original(*arguments, **keywords)

        if call == "open":
            for place in ("builtins.open", "io.open"):
                monkeypatch.setattr(place, partial(guarded, open, lambda path, *_, **__: path))
        elif call == "os.open":
            monkeypatch.setattr("os.open", partial(guarded, os.open, lambda path, *_, **__: path))
        elif call == "replace":
            monkeypatch.setattr("os.replace", partial(guarded, os.replace, lambda source, target: target))
        else:
            of_descriptor = lambda number, *_: os.readlink(f"/proc/self/fd/{number}")  # noqa: E731
            monkeypatch.setattr(f"os.{call}", partial(guarded, getattr(os, call), of_descriptor))

    return patch


def write_log(folder):
    with closing(Run(folder / "run")) as writer:
        writer.log("something")


def write_json(folder):
    with closing(Run(folder / "run")) as writer:
        writer.write_result({"a": 1})


def write_metrics(folder):
    with closing(Run(folder / "run")) as writer:
        writer.write_metrics([{"a": 1}])


def put_states(folder):
    builder = StateBuilder(folder / "s.safetensors", (4, 2, 4), "fp32", {})
    builder.begin()
    builder.write_block(0, torch.zeros(4, 2, 4))


def make_store(folder):
    with Partial(folder / "i.lmdb", {}):
        pass


WRITERS = {
    "log": (write_log, "open", r"log\.txt"),
    "result": (write_json, "replace", r"result\.json"),
    "metrics": (write_metrics, "fsync", r"metrics\.jsonl"),
    "checkpoint": (lambda folder: checkpoint.save(folder / "c", {"a": torch.ones(1)}, DESCRIPTION), "replace", r"/c$"),
    "table": (lambda folder: write_text(folder / "table.md", "x"), "open", r"table\.md"),
    "states": (put_states, "fsync", r"s\.safetensors"),
    "states begun": (put_states, "open", r"s\.safetensors"),
    "image store": (make_store, "os.open", r"i\.lmdb"),
    "folder": (lambda folder: make_folder(folder / "new", "--out"), "open", "new"),
}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("kind", WRITERS)
def test_what_cannot_be_written(kind, number, tmp_path, refuse, monkeypatch):
    write, call, name = WRITERS[kind]
    if kind == "folder":
        monkeypatch.setattr("tempfile.NamedTemporaryFile", lambda dir, **_: open(dir / "new"))
    refuse(call, name, getattr(errno, number))
    with pytest.raises(TransrecError) as caught:
        write(tmp_path)
    message = str(caught.value)
    assert (
        re.search(name.strip("$/"), message) and "\n" not in message and os.strerror(getattr(errno, number)) in message
    )
    assert ADVICE[number] in message
    assert ("make room" in message) == (number in ("ENOSPC", "EDQUOT"))
    assert ("permissions" in message) == (number in ("EACCES", "EROFS"))
    assert not list(tmp_path.rglob("*.tmp")), "no half-written file stays"


@pytest.fixture
def small_files():
    """Limit all files to 4 KiB, for Rust and C as for Python; calling the fixture's value lifts the limit."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def lift():
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, hard))
    yield lift
    lift()


def test_a_checkpoint_that_the_system_refuses(tmp_path, small_files):
    """The Rust code below safetensors quotes the system's message."""
    checkpoint.save(tmp_path / "c", {"a": torch.zeros(8)}, DESCRIPTION)
    with pytest.raises(FileError, match=r"/c: cannot be written \(File too large\); allow larger files with ulimit -f"):
        checkpoint.save(tmp_path / "c", {"a": torch.ones(2**14)}, DESCRIPTION)
    assert torch.equal(load_file(tmp_path / "c")["a"], torch.zeros(8)), "the one before stays"
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_an_image_store_that_the_system_refuses(domain, tmp_path, small_files):
    """The same holds for LMDB; records already in the store are kept."""
    build = partial(build_store, domain / "items.tsv", domain / "images", tmp_path / "s.lmdb", 32, "raw")
    with pytest.raises(FileError, match=r"s\.lmdb\S*: cannot be written \((File too large|No space left).*\); [^\n]+$"):
        build()
    small_files()
    assert build().count == 150


READERS = {
    "data": (file_sha256, "open"),
    "options": (lambda path: read_options(path.parent), "open"),
    "states": (lambda path: StateFile(path, {}), "open"),
}


@pytest.mark.parametrize("number", ["EIO", "EACCES", "EMFILE"])
@pytest.mark.parametrize("kind", READERS)
def test_what_cannot_be_read(kind, number, tmp_path, refuse):
    read, call = READERS[kind]
    path = tmp_path / "options.json"
    path.write_text("{}")
    refuse(call, "options", getattr(errno, number))
    with pytest.raises(FileError) as caught:
        read(path)
    assert str(path) in str(caught.value) and ADVICE[number] in str(caught.value)
    assert "delete" not in str(caught.value) and "make room" not in str(caught.value)


def test_a_store_that_cannot_be_read_just_now_is_not_begun_anew(domain, tmp_path, monkeypatch):
    import lmdb

    with Partial(tmp_path / "s.lmdb", {}) as begun:
        begun.put([("a", b"x", Stored(ImageEntry("a.png", 1), ""))])
    size = (tmp_path / ".s.lmdb.partial").stat().st_size
    with monkeypatch.context() as patched:
        patched.setattr("lmdb.open", lambda *_, **__: (_ for _ in ()).throw(lmdb.Error("x: Input/output error")))
        with pytest.raises(FileError, match=r"Input/output error\); the disk"):
            Partial(tmp_path / "s.lmdb", {})
    assert (tmp_path / ".s.lmdb.partial").stat().st_size == size
    with Partial(tmp_path / "s.lmdb", {}) as begun:
        assert list(begun.stored) == ["a"]


@pytest.mark.parametrize("call", ["os.chmod", "fcntl.flock"])
@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOLCK])
def test_file_systems_that_know_no_permissions_or_locks(call, number, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(call, refused)
    write_log(tmp_path)
    checkpoint.save(tmp_path / "c", {"a": torch.zeros(8)}, DESCRIPTION)
    write_json(tmp_path)


def test_tokens_go_without_a_cache_but_not_without_the_one_asked_for(domain, backbones, tmp_path, refuse):
    items, tokenizer = catalog.read_catalog(domain / "items.tsv"), load_tokenizer(backbones["bert"])
    refuse("replace", "tokens-", errno.ENOSPC)
    assert len(cached_tokens(items, tokenizer, 7, True).lengths) == 150
    with pytest.raises(FileError, match=r"tokens-.*make room"):
        cached_tokens(items, tokenizer, 7, True, tmp_path)


# File, system call, error, number of calls that succeed first, and whether the run has started.
MOMENTS = [
    ("log.txt", "open", "EACCES", 0, False),
    ("options.json", "replace", "ENOSPC", 0, False),
    ("log.txt", "open", "ENOSPC", 0, True),
    ("last.safetensors", "fsync", "EIO", 0, True),
    ("best.safetensors", "replace", "EDQUOT", 0, True),
    ("metrics.jsonl", "open", "EROFS", 1, True),
    ("last.safetensors", "replace", "ESTALE", 3, True),
    ("result.json", "fsync", "EMFILE", 0, True),
]


@pytest.mark.parametrize("name,call,number,spared,has_begun", MOMENTS, ids=lambda value: str(value))
def test_a_run_goes_on_after_a_file_failed(
    name, call, number, spared, has_begun, command, unbroken_run, tmp_path, refuse
):
    folder = tmp_path / "run"
    failing, calls = [True], iter(range(10**6))

    def due() -> bool:
        return failing[0] and (not has_begun or (folder / "options.json").exists()) and next(calls) >= spared

    refuse(call, re.escape(name), getattr(errno, number), due)
    status, message = command()
    assert status == 2 and message.startswith(f"error: {folder}") and name in message and ADVICE[number] in message
    failing[0] = False
    if has_begun:
        assert message.endswith(f"; the run continues with: python adapter.py --resume {folder}")
        assert command("--resume", str(folder))[0] == 0
    else:
        assert "continues" not in message and not folder.exists()
        assert command()[0] == 0
    assert_same_run(unbroken_run, folder)
    assert not list(folder.rglob(".*"))


def real_shortage(library):
    """Raise the error of torch's or numpy's own allocator."""
    return torch.empty(2**50) if library == "torch" else np.empty(2**50)


def cuda_shortage():
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore to read")


def after(spared: int, original, fail):
    """Return a function that calls `original` the first `spared` times, and `fail` afterwards."""
    calls = iter(range(10**6))
    return lambda *arguments: fail() if next(calls) >= spared else original(*arguments)


def test_out_of_memory_in_training(command, unbroken_run, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", after(1, Trainer._step, cuda_shortage))
        status, message = command()
    assert status == 2 and message.startswith(
        "error: out of memory while training (CUDA out of memory. Tried to allocate 2.00 GiB.); "
    )
    assert "or resume with --gradient_checkpointing, or start a new run with a larger --accumulate than 1 or" in message
    assert (
        all(flag in message for flag in ("--precision bf16", "--title_tokens", "--batch_size"))
        and "--cache" not in message
    )
    assert message.endswith(f"; the run continues with: python adapter.py --resume {tmp_path / 'run'}")
    assert command("--resume", str(tmp_path / "run"), "--gradient_checkpointing")[0] == 0
    assert_same_run(unbroken_run, tmp_path / "run")
    assert "changes nothing" not in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(
    "more,expected",
    [
        (["--cached", "yes"], "or resume with --cache_device disk, or start a new run with a larger --accumulate"),
        (["--cached", "no"], "free some, or start a new run with --cached auto or a larger --accumulate than 1 or"),
    ],
)
def test_what_helps_in_a_run_over_a_frozen_backbone(command, tmp_path, monkeypatch, more, expected):
    monkeypatch.setattr(Trainer, "_step", lambda *_: cuda_shortage())
    more = [*more, "--gradient_checkpointing", "--state_cache", str(tmp_path / "states")]
    status, message = command(*more, method="frozen")
    assert status == 2 and expected in message and "--gradient_checkpointing" not in message
    assert "--gradient_checkpointing changes nothing" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(
    "owner,name,flag", [(Evaluator, "encode_items", "--eval_batch"), (Ranker, "rank", "--eval_memory")]
)
def test_out_of_memory_in_evaluation(command, unbroken_run, tmp_path, monkeypatch, owner, name, flag):
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, lambda *_: real_shortage("torch"))
        status, message = command()
    assert status == 2 and "DefaultCPUAllocator" in message and f"give a smaller {flag} than" in message
    assert command("--resume", str(tmp_path / "run"), flag, "32")[0] == 0
    assert_same_run(unbroken_run, tmp_path / "run")


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_out_of_memory_while_a_backbone_is_loaded(command, tmp_path, monkeypatch, library):
    from transformers import AutoModel

    monkeypatch.setattr(AutoModel, "from_pretrained", lambda *_, **__: real_shortage(library))
    status, message = command()
    assert status == 2 and message.startswith("error: out of memory while preparing the run (")
    assert "fetch it again" not in message and "smaller backbone" in message and not (tmp_path / "run").exists()


def test_a_backbone_that_cannot_be_read_just_now(command, backbones, refuse):
    refuse("open", rf"{backbones['bert']}/config\.json", errno.EIO)
    status, message = command()
    assert status == 2 and "Input/output error" in message and "fetch it again" not in message


def test_out_of_memory_while_hidden_states_are_computed(command, backbones, tmp_path, monkeypatch):
    for module in ("transrec.data.states", "transrec.caching"):
        monkeypatch.setattr(f"{module}.BLOCK_ITEMS", 64)
    flags = [*encoder_flags("bert+vit", backbones), "--cached", "true", "--state_cache", str(tmp_path / "states")]
    flags += ["--text_layers", "0", "1", "--image_layers", "0", "1", "--adapter_lr", "1e-3"]
    with monkeypatch.context() as patched:
        patched.setattr(StateBuilder, "write_block", after(1, StateBuilder.write_block, lambda: real_shortage("numpy")))
        status, message = command(*flags, method="iisan")
    assert status == 2 and message.startswith("error: out of memory while computing hidden states (Unable to allocate")
    assert "--precision bf16" in message and not (tmp_path / "run").exists()
    done_blocks, begin = [], StateBuilder.begin
    monkeypatch.setattr(StateBuilder, "begin", lambda self: done_blocks.append(begin(self)) or done_blocks[-1])
    assert command(*flags, method="iisan")[0] == 0
    assert done_blocks == [1, 0], "of the text's states one block was kept"


@pytest.mark.parametrize("workers", [0, 2])
def test_what_fails_in_a_worker_is_told_alike(command, backbones, domain, tmp_path, monkeypatch, workers):
    def damaged(self, ids):
        raise self._damage_error(ids[0], "its bytes are gone")

    monkeypatch.setattr(ImageStore, "read", damaged)
    status, message = command(*encoder_flags("vit", backbones), "--image_workers", str(workers))
    assert status == 2 and re.match(
        r"error: \S*images\.lmdb: the image of \S+ is damaged \(its bytes are gone\)", message
    )


def test_a_worker_that_is_lost(command, backbones, monkeypatch):
    monkeypatch.setattr(ImageStore, "read", lambda self, ids: os.kill(os.getpid(), 9))
    status, message = command(*encoder_flags("vit", backbones), "--image_workers", "1")
    assert status == 2 and "a process that reads images was lost, perhaps for lack of memory" in message
    assert "give fewer --image_workers; the run continues with: " in message


A_LOST_WORKER = """
import os, signal, sys
from pathlib import Path
from transrec.command import reporting
from transrec.data.images import sources
from transrec.data.images.build import build_store
load = sources.Folder.load
def lost(self, found, convert):
    if "00070" in found.name:
        os.kill(os.getpid(), signal.SIGKILL)
    return load(self, found, convert)
sources.Folder.load = lost
if __name__ == "__main__":
    with reporting():
        build_store(*map(Path, sys.argv[1:]), 32, workers=3)
"""


def test_a_worker_of_an_image_store_that_is_lost(domain, tmp_path):
    """The other workers are ended, not waited for."""
    (tmp_path / "driver.py").write_text(A_LOST_WORKER)
    files = [domain / "items.tsv", domain / "images", tmp_path / "s.lmdb"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, tmp_path / "driver.py", *files], capture_output=True, text=True, env=environment, timeout=60
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "a worker process was lost, perhaps for lack of memory; give fewer --workers" in done.stderr
