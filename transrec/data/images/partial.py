"""A store that is being built: a record that is in it stays in it, even if the process is killed."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import lmdb

from transrec.data.images.environment import whole_length
from transrec.data.images.header import HEADER_KEY, Header
from transrec.data.images.sources import Found
from transrec.errors import TransrecError, about_file
from transrec.locks import Lock
from transrec.untrusted import parse_json

# Item ids contain no spaces.
PROGRESS_KEY = b" progress"
SETTINGS_KEY = b" settings"
FIRST_MAP_BYTES = 2**26
CONTINUES = "give the same command again, it continues"


class Stored(NamedTuple):
    """Which image a record was made of, and what was converted ("" if nothing)."""

    found: Found
    remark: str


class Partial:
    """The file `.NAME.partial` beside the store OUT/NAME: its records, and which image each one is of.

    Args:
        settings: what all its records have in common; a file with other settings is started anew.

    Attributes:
        stored: which image each record is of, by item id.
        discarded: whether there was a file with other settings.

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
        if not self._continue(header):
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
        """Add records and write them to disk; they replace older records of the same ids."""
        records = list(records)

        def write(transaction: lmdb.Transaction) -> None:
            for item, record, stored in records:
                transaction.put(item.encode(), record)
                transaction.put(item.encode(), json.dumps(stored).encode(), db=self._progress)

        self._write(write)
        self.stored.update((item, stored) for item, _, stored in records)

    def remove(self, ids: Iterable[str]) -> None:
        """Remove the records of ids that have one."""
        ids = list(ids)

        def write(transaction: lmdb.Transaction) -> None:
            for item in ids:
                transaction.delete(item.encode())
                transaction.delete(item.encode(), db=self._progress)

        self._write(write)
        for item in ids:
            del self.stored[item]

    def finish(self, header: Header, stand_ins: dict[str, bytes]) -> None:
        """Add the stand-ins' records and the header, and rename the file to its target."""

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
            # LMDB may leave its last pages unwritten where they are unused; readers tell a cut file by its length.
            os.truncate(self.path, length)
            os.replace(self.path, self.out)

    def _open(self) -> None:
        # One process writes, by the lock beside the file, and none reads: LMDB's own lock file is not needed.
        self._environment = lmdb.open(str(self.path), subdir=False, lock=False, map_size=FIRST_MAP_BYTES, max_dbs=1)
        try:
            # Reading a page that a cut file has lost would kill the process; as zeros it is told to be damaged.
            if self.path.stat().st_size < (length := whole_length(self._environment)):
                os.truncate(self.path, length)
            self._progress = self._environment.open_db(PROGRESS_KEY)
        except (lmdb.Error, OSError):
            self._environment.close()
            raise

    def _is_begun(self) -> bool:
        return self.path.is_file() and self.path.stat().st_size > 0

    def _continue(self, header: bytes) -> bool:
        """Open a file with these settings; False if there is none."""
        if not self._is_begun():
            return False
        try:
            # A file that cannot be read just now is not one to begin anew.
            with about_file(self.path, what="cannot be read"):
                self._open()
        except lmdb.Error:
            return False
        try:
            with self._environment.begin(db=self._progress) as transaction:
                if transaction.get(SETTINGS_KEY) == header:
                    for key, value in transaction.cursor():
                        if key != SETTINGS_KEY:
                            found, remark = parse_json(bytes(value))
                            self.stored[key.decode()] = Stored(Found(*found), remark)
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
