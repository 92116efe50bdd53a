"""Lock files, and files that are in use, on any system."""

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
        """Windows removes no file that is open."""

    try:
        # Windows.
        from msvcrt import LK_NBLCK, locking

        def _lock(descriptor: int) -> None:
            locking(descriptor, LK_NBLCK, 1)

    except ImportError:

        def _lock(descriptor: int) -> None:
            """A system without locks."""


SECONDS_BETWEEN_TRIES = 0.1


class Lock:
    """An empty file that this process holds until `close`, which removes it, or until it ends, however it ends.

    One that a killed process left behind locks nothing. Where a file system knows no locks, as some network ones,
    none is held.

    Args:
        wait: for another process that holds it.

    Raises BlockingIOError when another process holds it and `wait` is not set, TransrecError when the file cannot be
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
            # Removed by its holder between opening and locking it: what is locked is no longer that file.
            os.close(self._descriptor)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Let it go."""
        # Windows removes no file that is open; there it stays.
        with suppress(OSError):
            if self._is_in_place():
                self.path.unlink()
        os.close(self._descriptor)


def share(descriptor: int) -> None:
    """Have `remove_unused` leave a file alone as long as this process, or one forked from it, keeps it open.

    Where a file system knows no locks, nothing is done.
    """
    with suppress(OSError):
        _share(descriptor)


def remove_unused(path: Path) -> bool:
    """Remove a file that no process holds by `share` or `Lock`; returns whether it did.

    Raises FileError when it cannot be removed for another reason.
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
        # Windows removes no file that is open, by whomever.
        try:
            path.unlink()
        except PermissionError:
            return False
    return True
