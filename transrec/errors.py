"""What a user may be told: mistakes to mend, files that fail, memory that runs out, and being asked to stop."""

import errno
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
REMEDIES = {
    **dict.fromkeys(NO_ROOM, "make room there"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "mend its permissions, or use another place"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.ESTALE), "it, or a folder above it, is not there (any more)"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files with ulimit -n"),
    errno.EFBIG: "allow larger files with ulimit -f, or use another file system",
    errno.EIO: "the disk or the connection to it fails: look at the system's log, or use another place",
}
OS_ERROR_NUMBER = re.compile(r"\(os error (\d+)\)")
MEMORY_TEXT = re.compile(
    r"out of memory|(can't|cannot) allocate memory|not enough memory|shared memory|_ALLOC_FAILED|bad_alloc",
    re.IGNORECASE,
)
REASON_LENGTH = 160


class TransrecError(Exception):
    """A mistake the user can mend.

    The message names the file, line or option and its value, and says what to do. Scripts print it without a
    traceback and leave with `exit_status`.
    """

    exit_status = 2


class FileError(TransrecError):
    """A file or folder that the system could not read or write; what was written before stays."""


class MemoryShortage(TransrecError):
    """Memory ran out, of this machine or of its accelerator."""


class Interrupted(KeyboardInterrupt):
    """The command was asked to stop by a signal.

    Attributes:
        signal_number: SIGINT, as after Ctrl-C, or SIGTERM.
        advice: what is kept and how to go on; whoever knows sets it.
    """

    def __init__(self, signal_number: int, advice: str = ""):
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number, self.advice = signal_number, advice


def file_error(error: OSError, path: str | Path | None = None, remedy: str = "") -> FileError:
    """What to tell of an OSError: the file, the system's reason, and the remedy that suits it.

    Args:
        path: where the error does not name it, or names another one (a temporary name).
        remedy: what else may be done about it.
    """
    place = path or error.filename or "a file, or the output"
    reason = os.strerror(error.errno) if error.errno else _first_line(error)
    advice = [text for text in (REMEDIES.get(error.errno), remedy) if text]
    return FileError(f"{place}: {reason}" + (f"; {', or '.join(advice)}" if advice else ""))


def os_error(error: BaseException) -> OSError | None:
    """The OSError that `error` is, or that its text quotes as safetensors' errors do; None where there is none."""
    if isinstance(error, OSError):
        return error
    quoted = OS_ERROR_NUMBER.search(str(error))
    return OSError(int(quoted[1]), os.strerror(int(quoted[1]))) if quoted else None


@contextmanager
def files(path: str | Path, remedy: str = "") -> Iterator[None]:
    """Within, an OSError (or one that safetensors quotes) is raised as the FileError of `path`.

    A closed pipe stays what it is, and so does a lack of memory.
    """
    try:
        yield
    except (TransrecError, BrokenPipeError):
        raise
    except Exception as error:
        cause = os_error(error)
        if cause is None or is_memory_shortage(error):
            raise
        raise file_error(cause, path, remedy) from error


def is_memory_shortage(error: BaseException) -> bool:
    """Whether it says that memory ran out, whoever says it: Python, numpy, torch on any device, or the system."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or bool(MEMORY_TEXT.search(str(error)))


@contextmanager
def memory(doing: str, remedy: str) -> Iterator[None]:
    """Within, running out of memory is raised as a MemoryShortage that says while `doing` what, and the remedy."""
    try:
        yield
    except TransrecError:
        raise
    except Exception as error:
        if not is_memory_shortage(error):
            raise
        raise memory_shortage(error, f" while {doing}", remedy) from error


def memory_shortage(error: BaseException, when: str = "", remedy: str = "use a machine with more") -> MemoryShortage:
    """What to tell of an error that `is_memory_shortage`."""
    reason = _first_line(error)
    return MemoryShortage(f"out of memory{when}{f' ({reason})' if reason else ''}; {remedy}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:REASON_LENGTH]
