"""Progress bars on terminals and in files."""

import subprocess
import sys

import pytest
from conftest import REPOSITORY
from tqdm import tqdm

from transrec.progress import Bar


@pytest.fixture
def seconds(monkeypatch):
    """A clock that does not advance until it is set."""
    now = [0.0]
    monkeypatch.setattr("transrec.progress.monotonic", lambda: now[0])
    return now


def test_a_line_per_minute_in_a_file(capsys, monkeypatch, seconds):
    monkeypatch.delenv("TQDM_MININTERVAL", raising=False)
    with Bar(total=300, desc="work", leave=False) as bar:
        for second in range(300):
            seconds[0] = float(second)
            bar.set_postfix_str(f"at {second}")
            bar.update()
            tqdm.write("said")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("at ")[2].strip("]") for line in lines] == ["60", "120", "180", "240"]
    assert all(line.startswith("work: ") for line in lines)


@pytest.mark.parametrize("leave", [True, False])
def test_a_short_bar_in_a_file_is_one_line_or_none(capsys, seconds, leave):
    assert list(Bar(range(5), desc="work", leave=leave)) == list(range(5))
    written = capsys.readouterr().err
    assert written.count("\n") == leave and "\r" not in written
    assert ("work: 100%" in written) == leave


def test_a_chosen_interval_is_kept_to(monkeypatch):
    code = "from transrec.progress import Bar\nfor _ in Bar(range(3), leave=False): pass"
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.stderr.count("\n") == 4, "the start and each step"


def test_a_bar_moves_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(Bar(range(5), desc="work", mininterval=0)) == list(range(5))
    assert "\rwork:  40%" in capsys.readouterr().err


def test_every_bar_is_of_this_kind():
    for path in (REPOSITORY / "transrec").rglob("*.py"):
        assert path.name == "progress.py" or "tqdm(" not in path.read_text(), path
