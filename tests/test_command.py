"""Every command ends with one line and an exit status, whatever happens to it."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from transrec.command import reporting, resume_command, run_script
from transrec.data.images.build import ImageProblems
from transrec.errors import Interrupted, TransrecError

SCRIPTS = sorted(
    path
    for folder in ("scripts", "Dataset")
    for path in (REPOSITORY / folder).glob("*.py")
    if "__main__" in path.read_text()
)
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def leaves(act, capfd) -> tuple[int, str]:
    """Return exit status and standard error of a command that does `act`."""
    with pytest.raises(SystemExit) as exit_, reporting():
        act()
    return exit_.value.code, capfd.readouterr().err


def raises(error: BaseException):
    def act():
        raise error

    return act


@pytest.mark.parametrize(
    "error,status,line",
    [
        (TransrecError("no such thing; mend it"), 2, "error: no such thing; mend it"),
        (ImageProblems("two images are bad"), 1, "error: two images are bad"),
        (Interrupted(signal.SIGTERM, "saved; go on"), 143, "stopped by SIGTERM: saved; go on"),
        (MemoryError(), 2, "error: out of memory; use a machine with more"),
        (OSError(errno.ENOMEM, "No memory"), 2, "error: out of memory ([Errno 12] No memory); use a machine with more"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
            2,
            "error: out of memory ([enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`\nmore"), 2, "error: out of"),
        (
            OSError(errno.ENOSPC, "No space left", "/d/f"),
            2,
            "error: /d/f: cannot be used (No space left on device); make room there",
        ),
        (
            PermissionError(errno.EACCES, "no", "/d/f"),
            2,
            "error: /d/f: cannot be used (Permission denied); mend its permissions\n",
        ),
        (
            OSError(errno.EIO, "no", "/d/f"),
            2,
            "error: /d/f: cannot be used (Input/output error); the disk or the connection to it",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_one_line_and_a_status(error, status, line, capfd):
    code, errors = leaves(raises(error), capfd)
    assert code == status and errors.startswith(line) and errors.count("\n") == 1


def test_cuda_out_of_memory(capfd):
    import torch

    error = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")
    assert "error: out of memory (CUDA out of memory. Tried to allocate 2.00 GiB.)" in leaves(raises(error), capfd)[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_anywhere(number, capfd):
    before = signal.getsignal(number)
    message = f"stopped by {number.name}: nothing is lost, the same command starts again\n"
    assert leaves(lambda: signal.raise_signal(number), capfd) == (128 + number, message)
    assert signal.getsignal(number) is before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with reporting():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_to_a_command_that_is_done_makes_no_failure_of_it():
    """Shutting torch down may take a second."""
    program = (
        "import atexit, time; from transrec.command import reporting\n"
        "atexit.register(lambda: (print('done', flush=True), time.sleep(1)))\n"
        "with reporting(): pass"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert process.stdout.readline() == b"done\n"
    process.terminate()
    assert process.wait() == 0


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(KeyError), reporting():
        raise KeyError("a bug")


@pytest.mark.parametrize("words", ["print('x' * 10**6)", "print('x')", "parser.print_help(); sys.exit(0)"])
def test_nobody_reads_the_output(words):
    program = (
        "import argparse, sys, time; from transrec.command import reporting\n"
        "parser = argparse.ArgumentParser()\n"
        f"with reporting():\n    time.sleep(0.3); {words}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY, env=BUFFERED
    )
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 128 + signal.SIGPIPE


def test_output_that_cannot_be_written():
    program = "from transrec.command import reporting\nwith reporting(): print('x')"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, cwd=REPOSITORY, env=BUFFERED
        )
    assert done.returncode == 2
    assert done.stderr == b"error: standard output: cannot be written (No space left on device); make room there\n"


def test_what_ends_a_command_loads_nothing_heavy():
    program = "import sys, transrec.command; sys.exit(bool({'torch', 'numpy', 'tqdm'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY).returncode == 0


def test_the_command_that_continues(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-u", "adapter.py", "--lr", "1"])
    monkeypatch.setattr(sys, "argv", ["adapter.py", "--lr", "1"])
    assert resume_command(Path("/my runs/a")) == "python adapter.py --resume '/my runs/a'"
    assert resume_command(Path("/runs/a"), processes=2) == "python adapter.py --resume /runs/a --nproc 2"


def test_a_script_that_is_stopped_may_save_first(tmp_path):
    """The parent waits for the script, although only the parent received the signal."""
    inner = f"""
import os, signal, sys, time
from transrec.command import reporting
from transrec.errors import Interrupted
with reporting():
    try:
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(60)
    except Interrupted:
        time.sleep(0.5)
        open({str(tmp_path / "saved")!r}, "w").close()
        raise
"""
    with pytest.raises(SystemExit) as exit_, reporting():
        run_script([sys.executable, "-c", inner])
    assert exit_.value.code == 130 and (tmp_path / "saved").exists()
    assert run_script([sys.executable, "-c", "raise SystemExit(5)"]) == 5


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_leave_it_to_one_place(script):
    text = script.read_text()
    assert "error: {" not in text and "KeyboardInterrupt" not in text
    commands = ("reporting()", "from transrec.runner import", "transrec.studies import")
    commands += ("studies.search_command import main", "importing.command import run")
    assert any(command in text for command in commands)
