"""Lock files, and locks on files that are in use, on any operating system."""

import os
import time
from contextlib import suppress
from pathlib import Path

from transrec.errors import about_file

try:
    from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock

    def _lock(descriptor: int) -> None:
        flock(descriptor, LOCK_EX | LOCK_NB)

    def _share(descriptor: int) -> None:
        flock(descriptor, LOCK_SH | LOCK_NB)

except ImportError:

    def _share(descriptor: int) -> None:
        """Do nothing, because Windows does not remove a file that is open."""

    try:
        # Windows.
        from msvcrt import LK_NBLCK, locking

        def _lock(descriptor: int) -> None:
            locking(descriptor, LK_NBLCK, 1)

    except ImportError:

        def _lock(descriptor: int) -> None:
            """Do nothing on a system without locks."""


SECONDS_BETWEEN_TRIES = 0.1


class Lock:
    """An empty file that this process holds until `close`, which removes it, or until the process ends for any reason.

    A file that a killed process left behind locks nothing. On file systems without locks, such as some network file
    systems, nothing is locked either.

    Args:
        wait: whether to wait while another process holds the file.

    Raises BlockingIOError if another process holds the file and `wait` is not set, TransrecError if the file cannot be
    written.
    """

    def __init__(self, path: Path, wait: bool = False):
        self.path = path
        while not self._take():
            if not wait:
                raise BlockingIOError(f"{path}: another process holds it")
            time.sleep(SECONDS_BETWEEN_TRIES)

    def _take(self) -> bool:
        while True:
            with about_file(self.path):
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock(self._descriptor)
            except (BlockingIOError, PermissionError):
                os.close(self._descriptor)
                return False
            except OSError:
                return True
            if self._is_in_place():
                return True
            # Its holder removed the file after it was opened here, so this lock is on a deleted file. Try again.
            os.close(self._descriptor)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Release the lock and remove the file."""
        # Windows does not remove an open file; there it stays.
        with suppress(OSError):
            if self._is_in_place():
                self.path.unlink()
        os.close(self._descriptor)


def share(descriptor: int) -> None:
    """Make `remove_unused` leave a file alone as long as this process, or one forked from it, keeps it open.

    If the file system has no locks, nothing is done.
    """
    with suppress(OSError):
        _share(descriptor)


def remove_unused(path: Path) -> bool:
    """Remove a file unless a process holds it by `share` or `Lock`. Return whether the file was removed.

    Raises FileError if it cannot be removed for another reason.
    """
    with about_file(path, what="cannot be removed"):
        with open(path, "r+b") as file:
            try:
                _lock(file.fileno())
            except (BlockingIOError, PermissionError):
                return False
            except OSError:
                # A file system without locks.
                pass
            if os.name != "nt":
                path.unlink()
                return True
        # Windows does not remove a file that any process has open, so the file is closed first.
        try:
            path.unlink()
        except PermissionError:
            return False
    return True
