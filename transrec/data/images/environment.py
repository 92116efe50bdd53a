"""Opens LMDB files for reading: one handle per file and process. Handles are closed before a fork."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from transrec.errors import TransrecError, about_file, file_error
from transrec.untrusted import check_regular

_lock = threading.RLock()
_environments: dict[Path, tuple[tuple[int, int], lmdb.Environment]] = {}


@contextmanager
def read_transaction(path: Path) -> Iterator[lmdb.Transaction]:
    """Open a read transaction on the LMDB file or folder at `path`. Its values are buffers, valid only in the context.

    Raises TransrecError if there is nothing at `path`, or anything but a complete LMDB.
    """
    with _lock:
        environment = _environment(path)
        try:
            with environment.begin(buffers=True) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise TransrecError(f"{path}: a damaged LMDB ({error}); make or copy it again") from error


def _environment(path: Path) -> lmdb.Environment:
    data = path / "data.mdb" if path.is_dir() else path
    try:
        check_regular(data)
        status = os.stat(data)
    except OSError as error:
        raise file_error(error, path, what="cannot read it as an image store") from error
    file = (status.st_dev, status.st_ino)
    place = path.resolve()
    # Reopen the file if another one has taken its place.
    if place in _environments and _environments[place][0] != file:
        _environments.pop(place)[1].close()
    if place not in _environments:
        _environments[place] = (file, _open_environment(path, status.st_size))
    return _environments[place][1]


def _open_environment(path: Path, length: int) -> lmdb.Environment:
    try:
        with about_file(path, what="cannot read it as an image store"):
            environment = lmdb.open(
                str(path), subdir=path.is_dir(), readonly=True, create=False, lock=False, readahead=False
            )
    except lmdb.Error as error:
        raise TransrecError(f"{path}: not an LMDB, or a damaged one ({error}); make or copy it again") from error
    # Reading a page beyond the end of a truncated file would kill the process without a message.
    if length < (needed := whole_length(environment)):
        environment.close()
        raise TransrecError(
            f"{path}: the file is cut off, {length:,} of at least {needed:,} bytes are left; make or copy it again"
        )
    return environment


def whole_length(environment: lmdb.Environment) -> int:
    """Return the file size in bytes that an open LMDB needs for all its pages."""
    return (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]


def _before_fork() -> None:
    _lock.acquire()
    while _environments:
        _environments.popitem()[1][1].close()


# LMDB forbids using a handle in a forked child, and refuses to open a file there that the parent has open. The lock is
# held during the fork so that no other thread opens a file in between.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_lock.release, after_in_child=_lock.release)
