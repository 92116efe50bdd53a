"""Ends commands with one line for the user and an exit status, and without a traceback."""

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

from transrec.errors import Interrupted, TransrecError, file_error, printable, reported_error
from transrec.processes import STOP_SIGNALS

NOTHING_LOST = "nothing is lost, the same command starts again"
SECONDS_FOR_MAIN_TO_SPEAK = 15
SECONDS_OF_ONE_SIGNAL = 1


@contextmanager
def reporting() -> Iterator[None]:
    """Context for everything that a command does, which reports errors and exits.

    The exit status is that of a TransrecError, 2 after any other error about a file or memory, and 128 + the number of
    a signal that asked the command to stop. Such a signal raises Interrupted wherever the command is. If nobody reads
    the output any more, the command exits as if SIGPIPE had killed it.
    """
    with _interruptible():
        try:
            try:
                yield
            except SystemExit:
                _flush()
                raise
            _flush()
            # Nothing is left to stop: a signal while the interpreter shuts down must not turn success into failure.
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
            reported = reported_error(error)
            if reported is None:
                raise
            _leave(reported.exit_status, f"error: {reported}")


def resume_command(folder: Path, processes: int = 1, plugins: Sequence[str] = ()) -> str:
    """Return the command that continues a run with the script that was called."""
    words = [sys.orig_argv[0], sys.argv[0], "--resume", str(folder)]
    words += [word for plugin in plugins for word in ("--plugin", plugin)]
    return shlex.join([*words, "--nproc", str(processes)] if processes > 1 else words)


def say(text: str) -> None:
    """Print a line on standard error from a signal handler, which may have interrupted another print."""
    os.write(2, f"\n{text}\n".encode())


def run_script(command: list[str]) -> int:
    """Run another script of this project to its end and return its exit status.

    Raises Interrupted after a signal to stop, once the script, which is asked to stop too, has saved and exited.
    """
    # With a session of its own for the script, Ctrl-C reaches only this process, which passes it on once.
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
    """Context in which SIGINT and SIGTERM raise Interrupted, unless this process was started with the signal ignored.

    Two signals within a second count as one, sent to all processes of a job and passed on by its launcher as well.
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
        # The main process reports what concerns all processes of a run, and ends the others when it ends.
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
    """Flush the output now, because an error in flushing could not be reported when the process ends."""
    if sys.stdout:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            _close_output()
            raise file_error(error, "standard output", what="cannot be written") from error


def _close_output() -> None:
    """Discard output that could not be printed. Otherwise Python would try again at exit, and complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())
