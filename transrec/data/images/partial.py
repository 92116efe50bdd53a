"""A store that is being built. Records that are in it survive even if the process is killed."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import lmdb

from transrec.data.images.environment import whole_length
from transrec.data.images.header import HEADER_KEY, Header
from transrec.data.images.sources import ImageEntry
from transrec.errors import TransrecError, about_file
from transrec.locks import Lock
from transrec.untrusted import parse_json

# Item ids contain no spaces.
PROGRESS_KEY = b" progress"
SETTINGS_KEY = b" settings"
FIRST_MAP_BYTES = 2**26
CONTINUES = "give the same command again, it continues"


class Stored(NamedTuple):
    """The image that a record was made from, and what was converted ("" if nothing)."""

    entry: ImageEntry
    remark: str


class Partial:
    """The file `.NAME.partial` next to the store OUT/NAME: the records so far, and the image that each was made from.

    Args:
        settings: settings common to all records; a damaged file or one with other settings is discarded.

    Attributes:
        stored: the image that each record was made from, by item id.
        discarded: whether an existing file was discarded.

    Raises TransrecError if another process is building the same store, or the disk is full.
    """

    def __init__(self, out: Path, settings: dict):
        self.out = out
        self.path = out.with_name(f".{out.name}.partial")
        try:
            self._lock = Lock(out.with_name(f".{out.name}.lock"))
        except BlockingIOError as error:
            raise TransrecError(f"{self.path}: another process is building this store; wait for it") from error
        self.stored: dict[str, Stored] = {}
        self.discarded = False
        try:
            self._begin(settings)
        except BaseException:
            self._lock.close()
            raise

    def _begin(self, settings: dict) -> None:
        header = json.dumps(settings, sort_keys=True).encode()
        if not self._resume(header):
            with about_file(self.path):
                self.discarded = self._is_begun()
                self.path.unlink(missing_ok=True)
                self.path.touch()
                self._open()
            self._write(lambda transaction: transaction.put(SETTINGS_KEY, header, db=self._progress))

    def __enter__(self) -> "Partial":
        return self

    def __exit__(self, *_) -> None:
        self._environment.close()
        self._lock.close()

    def put(self, records: Iterable[tuple[str, bytes, Stored]]) -> None:
        """Add records and write them to disk. They replace earlier records of the same ids."""
        records = list(records)

        def write(transaction: lmdb.Transaction) -> None:
            for item, record, stored in records:
                transaction.put(item.encode(), record)
                transaction.put(item.encode(), json.dumps(stored).encode(), db=self._progress)

        self._write(write)
        self.stored.update((item, stored) for item, _, stored in records)

    def remove(self, ids: Iterable[str]) -> None:
        """Remove the records of ids, all of which have one."""
        ids = list(ids)

        def write(transaction: lmdb.Transaction) -> None:
            for item in ids:
                transaction.delete(item.encode())
                transaction.delete(item.encode(), db=self._progress)

        self._write(write)
        for item in ids:
            del self.stored[item]

    def finish(self, header: Header, stand_ins: dict[str, bytes]) -> None:
        """Add the grey records in `stand_ins` and the header, and rename the file to its target."""

        def write(transaction: lmdb.Transaction) -> None:
            for item, record in stand_ins.items():
                transaction.put(item.encode(), record)
            transaction.drop(self._progress)
            transaction.put(HEADER_KEY, header.to_bytes())

        self._write(write)
        with about_file(self.out, CONTINUES):
            self._environment.sync(True)
            length = max(whole_length(self._environment), self.path.stat().st_size)
            self._environment.close()
            # LMDB may leave unused pages at the end unwritten, but readers recognise a truncated file by its length.
            os.truncate(self.path, length)
            os.replace(self.path, self.out)

    def _open(self) -> None:
        # LMDB's own lock file is not needed: our lock next to the file admits one writer, and there are no readers.
        self._environment = lmdb.open(str(self.path), subdir=False, lock=False, map_size=FIRST_MAP_BYTES, max_dbs=1)
        try:
            # Reading a page beyond the end of a truncated file would kill the process. Zeros are reported as damage.
            if self.path.stat().st_size < (length := whole_length(self._environment)):
                os.truncate(self.path, length)
            self._progress = self._environment.open_db(PROGRESS_KEY)
        except (lmdb.Error, OSError):
            self._environment.close()
            raise

    def _is_begun(self) -> bool:
        return self.path.is_file() and self.path.stat().st_size > 0

    def _resume(self, header: bytes) -> bool:
        """Open an existing file with these settings and read `stored`; return False if there is none."""
        if not self._is_begun():
            return False
        try:
            # An unreadable file is an error rather than a reason to start again: it may be readable later.
            with about_file(self.path, what="cannot be read"):
                self._open()
        except lmdb.Error:
            return False
        try:
            with self._environment.begin(db=self._progress) as transaction:
                if transaction.get(SETTINGS_KEY) == header:
                    for key, value in transaction.cursor():
                        if key != SETTINGS_KEY:
                            entry, remark = parse_json(bytes(value))
                            self.stored[key.decode()] = Stored(ImageEntry(*entry), remark)
                    return True
        except (lmdb.Error, ValueError, TypeError):
            self.stored.clear()
        self._environment.close()
        return False

    def _write(self, write: Callable[[lmdb.Transaction], object]) -> None:
        while True:
            try:
                with about_file(self.path, CONTINUES), self._environment.begin(write=True) as transaction:
                    write(transaction)
                return
            except lmdb.MapFullError:
                with about_file(self.path, CONTINUES):
                    self._environment.set_mapsize(2 * self._environment.info()["map_size"])
            except lmdb.Error as error:
                raise TransrecError(f"{self.path}: cannot be written ({error}); {CONTINUES}") from error
