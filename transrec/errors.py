"""Errors for users: mistakes to correct, files that fail, memory that runs out, and signals to stop."""

import errno
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
REMEDIES = {
    **dict.fromkeys(NO_ROOM, "make room there"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "mend its permissions"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.ESTALE), "it, or a folder above it, is not there"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files with ulimit -n"),
    errno.EFBIG: "allow larger files with ulimit -f, or use another file system",
    errno.EIO: "the disk or the connection to it fails, see the system's log",
}
OS_ERROR_NUMBER = re.compile(r"\(os error (\d+)\)")
MEMORY_TEXT = re.compile(
    r"out of memory|(can't|cannot) allocate memory|not enough memory|shared memory|_ALLOC_FAILED|bad_alloc",
    re.IGNORECASE,
)
REASON_LENGTH = 160
LONGEST_MESSAGE = 4000


class TransrecError(Exception):
    """A mistake that the user can correct.

    The message names the file, line or option and its value, and says what to do. Scripts print it without a
    traceback and exit with `exit_status`. The message is one printable line, whatever it quotes.
    """

    exit_status = 2

    def __init__(self, message: str):
        message = printable(message)
        if len(message) > LONGEST_MESSAGE:
            # Keep the end, which says what to do.
            message = f"{message[: LONGEST_MESSAGE // 2]} [...] {message[-LONGEST_MESSAGE // 2 :]}"
        super().__init__(message)


class FileError(TransrecError):
    """The system could not read or write a file or folder; what was written before is kept."""


class MemoryShortage(TransrecError):
    """This machine or its accelerator ran out of memory."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to stop.

    Attributes:
        signal_number: SIGINT (Ctrl-C) or SIGTERM.
        advice: what is saved and how to continue; set by the code that knows.
    """

    def __init__(self, signal_number: int, advice: str = ""):
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number, self.advice = signal_number, advice


def file_error(
    error: OSError, path: str | Path | None = None, remedy: str = "", what: str = "cannot be used"
) -> FileError:
    """Return the FileError for an OSError. It names the file, what failed, the system's reason and suitable remedies.

    Args:
        path: the file to name, if the error names no file or a temporary one.
        remedy: a further remedy to name.
    """
    place = path or error.filename or "a file, or the output"
    reason = os.strerror(error.errno) if error.errno else _first_line(error)
    advice = ", or ".join(text for text in (REMEDIES.get(error.errno or 0), remedy) if text)
    return FileError(f"{place}: {what} ({reason})" + (f"; {advice}" if advice else ""))


def os_error(error: BaseException) -> OSError | None:
    """Return the OSError that `error` is, or that its text quotes (as in LMDB and safetensors), or None."""
    if isinstance(error, OSError):
        return error
    text = str(error)
    quoted = OS_ERROR_NUMBER.search(text)
    number = int(quoted[1]) if quoted else next((number for number in REMEDIES if os.strerror(number) in text), None)
    return OSError(number, os.strerror(number)) if number else None


@contextmanager
def about_file(path: str | Path, remedy: str = "", what: str = "cannot be written") -> Iterator[None]:
    """Context that turns an OSError, or another error that quotes one, into a FileError about `path`.

    A closed pipe stays a BrokenPipeError. Running out of memory becomes a MemoryError, whichever library reports it.
    """
    try:
        yield
    except (TransrecError, BrokenPipeError):
        raise
    except Exception as error:
        if is_memory_shortage(error):
            raise MemoryError(_first_line(error)) from error
        cause = os_error(error)
        if cause is None:
            raise
        raise file_error(cause, path, remedy, what) from error


def is_memory_shortage(error: BaseException) -> bool:
    """Return whether an error of Python, numpy, torch (on any device) or the system says that memory ran out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or bool(MEMORY_TEXT.search(str(error)))


@contextmanager
def about_memory(doing: str, remedy: str) -> Iterator[None]:
    """Context that turns running out of memory into a MemoryShortage, with the remedy and what the code was `doing`."""
    try:
        yield
    except TransrecError:
        raise
    except Exception as error:
        if not is_memory_shortage(error):
            raise
        raise memory_shortage(error, f" while {doing}", remedy) from error


def memory_shortage(error: BaseException, when: str = "", remedy: str = "use a machine with more") -> MemoryShortage:
    """Return the MemoryShortage for an error that `is_memory_shortage` recognises."""
    reason = _first_line(error)
    return MemoryShortage(f"out of memory{when}{f' ({reason})' if reason else ''}; {remedy}")


def reported_error(error: Exception) -> TransrecError | None:
    """Return the TransrecError for an error; None for a fault of transrec itself, which keeps its traceback."""
    if isinstance(error, TransrecError):
        return error
    if is_memory_shortage(error):
        return memory_shortage(error)
    return file_error(error) if isinstance(error, OSError) and not isinstance(error, BrokenPipeError) else None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:REASON_LENGTH]


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has no message."""
    return _first_line(error) or type(error).__name__


def warn(text: str) -> None:
    """Print a warning of one line on standard error."""
    print(printable(f"warning: {text}"), file=sys.stderr)


def printable(text: str) -> str:
    """Return `text` on one line, safe to show in a terminal, a log or a table.

    Control characters, terminal escapes, line ends, characters that change the direction of writing, and bytes that are
    not text are shown as Python writes them: \\x1b.
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
