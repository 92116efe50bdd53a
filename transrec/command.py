"""How a command ends: with one line for the user and an exit status, without a traceback."""

import atexit
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from transrec.errors import Interrupted, TransrecError, as_told, file_error, printable
from transrec.processes import STOP_SIGNALS

NOTHING_LOST = "nothing is lost, the same command starts again"
SECONDS_FOR_MAIN_TO_SPEAK = 15
SECONDS_OF_ONE_SIGNAL = 1


@contextmanager
def reporting() -> Iterator[None]:
    """Report what goes wrong within, which is everything that a command does.

    It leaves with the status of a TransrecError, 2 after any other error of a file or of memory, 128 + the signal after
    one that asked it to stop, which is raised as Interrupted wherever the command is, and as if killed by SIGPIPE when
    nobody reads its output any more.
    """
    with _interruptible():
        try:
            try:
                yield
            except SystemExit:
                _flush()
                raise
            _flush()
            # Nothing is left to stop: a signal while the interpreter takes itself down must not make a failure of it.
            atexit.register(_ignore_signals)
        except Interrupted as stop:
            _ignore_signals()
            if int(os.environ.get("RANK", 0)):
                sys.exit(128 + stop.signal_number)
            _leave(128 + stop.signal_number, f"stopped by {stop}: {stop.advice or NOTHING_LOST}")
        except BrokenPipeError:
            _close_output()
            sys.exit(128 + signal.SIGPIPE)
        except Exception as error:
            told = as_told(error)
            if told is None:
                raise
            _leave(told.exit_status, f"error: {told}")


def resume_command(folder: Path, processes: int = 1, plugins: Sequence[str] = ()) -> str:
    """The command that continues a run with the script that was called."""
    words = [sys.orig_argv[0], sys.argv[0], "--resume", str(folder)]
    words += [word for plugin in plugins for word in ("--plugin", plugin)]
    return shlex.join([*words, "--nproc", str(processes)] if processes > 1 else words)


def say(text: str) -> None:
    """Print a line on standard error from a signal handler, which may have interrupted another print."""
    os.write(2, f"\n{text}\n".encode())


def run_script(command: list[str]) -> int:
    """Run another script of ours to its end and return its exit status.

    Raises Interrupted once the script, which is told to stop too, has saved and left.
    """
    # A session of its own: Ctrl-C reaches this process alone, which passes it on once.
    process = subprocess.Popen(command, start_new_session=True)
    stopped: Interrupted | None = None
    while True:
        try:
            status = process.wait()
            break
        except Interrupted as stop:
            stopped = stop
            process.terminate()
    if stopped:
        raise stopped
    return status


@contextmanager
def _interruptible() -> Iterator[None]:
    """Within, SIGINT and SIGTERM raise Interrupted, unless whoever started this process had it ignore them.

    One that comes within a second of another is the same, sent to a job as a whole and passed on by its launcher too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    last = -math.inf

    def stop(number, frame):
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > SECONDS_OF_ONE_SIGNAL:
            raise Interrupted(number)

    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        for number, handler in previous.items():
            if handler not in (signal.SIG_IGN, None):
                signal.signal(number, stop)
        yield
    finally:
        for number, handler in previous.items():
            if handler is not None:
                signal.signal(number, handler)


def _ignore_signals() -> None:
    """Ignore further signals, so that none cuts off the last line."""
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _leave(status: int, line: str) -> None:
    """Print the line on standard error and exit."""
    if rank := int(os.environ.get("RANK", 0)):
        # What concerns all processes of a run is the main one's to say, whose end ends the others.
        time.sleep(SECONDS_FOR_MAIN_TO_SPEAK)
        line = line.replace("error: ", f"error: process {rank}: ", 1)
    with suppress(OSError, TransrecError):
        _flush()
    try:
        print(printable(line), file=sys.stderr, flush=True)
    except OSError:
        _close_output()
    sys.exit(status)


def _flush() -> None:
    """Flush the output now: an error of it could not be reported at the end of the process."""
    if sys.stdout:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            _close_output()
            raise file_error(error, "standard output", what="cannot be written") from error


def _close_output() -> None:
    """Discard what could not be printed; Python would try once more at its end, and complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())
