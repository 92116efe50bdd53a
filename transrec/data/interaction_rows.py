"""Reads interactions from Parquet, one interaction per row, without creating a Python object per row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transrec.data.interactions import PARTS, Interactions, Sequences
from transrec.data.parquet import ROWS_AT_ONCE, open_parquet
from transrec.errors import TransrecError

USER, ITEM, TIME = "user_id", "item_id", "time"
# Accepted names for the column of the publisher's own split, and the part that each of its values means.
SPLIT = ("split", "part")
PART_NAMES = {"train": 0, "training": 0, "valid": 1, "validation": 1, "val": 1, "dev": 1, "test": 2}
COLUMNS = "user_id, item_id, and where there are any time (whole seconds) and split (train, validation, test)"


def read_interactions(
    path: Path, items: list[str], needs: Sequence[str] = (), with_times: bool = False
) -> Interactions:
    """Read one row per interaction: user, item and, if the file has them, time and the publisher's split.

    A user's rows need not be adjacent. They are ordered by time if every row has one, else kept in file order.

    Args:
        items: ids of the catalogue's items.
        needs: which of "times" and "parts" the file must have.
        with_times: keep times if the file has them; otherwise they are held only to sort rows that are out of order.

    Raises TransrecError, naming the row, for a missing value and an unknown item or part; also for a missing column.
    """
    with open_parquet(path) as file:
        names = file.schema_arrow.names
        split = next((name for name in SPLIT if name in names), None)
        for name in (USER, ITEM):
            if name not in names:
                raise TransrecError(f"{path}: has no column {name!r} among {', '.join(names)}; it needs {COLUMNS}")
        if "times" in needs and TIME not in names:
            raise TransrecError(
                f"{path}: has no column {TIME!r}, which --split time reads (whole seconds since 1970); add it, or use "
                f"--split loo or --split ratio"
            )
        if "parts" in needs and split is None:
            raise TransrecError(
                f"{path}: has no column 'split', which --split given reads (train, validation or test); add it, or "
                f"use another --split"
            )
        columns = TIME if TIME in names else None, split if "parts" in needs else None
        table = _Rows(path, items, file.metadata.num_rows, *columns, "times" in needs)
        keeps_times = with_times or "times" in needs
        table.read(file, keeps_times)
    return table.interactions(keeps_times)


class _Rows:
    """The columns of a file as numeric arrays: int32 users and items, int64 times, int8 parts."""

    def __init__(
        self, path: Path, items: list[str], count: int, time: str | None, split: str | None, requires_times: bool
    ):
        self.path, self.time, self.split, self.requires_times = path, time, split, requires_times
        self.ids, self.count = items, count
        self.user_numbers: dict[str, int] = {}
        self.users, self.items = np.empty(count, np.int32), np.empty(count, np.int32)
        self.times: np.ndarray | None = None
        self.parts = np.empty(count, np.int8) if split else None
        self.is_ordered = True
        # User and time of the previous row.
        self.previous = np.full(1, -1, np.int32), np.zeros(1, np.int64)

    def read(self, file: Any, keeps_times: bool) -> None:
        """Read all columns; times are held only if they are to be kept or the rows must be sorted."""
        import pyarrow  # pyright: ignore[reportMissingImports]

        listed = pyarrow.array(self.ids, pyarrow.string())
        columns = [USER, ITEM, *filter(None, (self.time, self.split))]
        if self.time and keeps_times:
            self.times = np.empty(self.count, np.int64)
        start = 0
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
            rows = slice(start, start + len(batch))
            self.users[rows] = self._users(batch.column(USER), start)
            self.items[rows] = self._items(batch.column(ITEM), listed, start)
            times = self._times(batch.column(self.time), start) if self.time else None
            if times is None:
                # At least one row has no time, so times cannot order the rows.
                self.times = self.time = None
            elif self.times is not None:
                self.times[rows] = times
            self._update_order(self.users[rows], times)
            if self.parts is not None:
                self.parts[rows] = self._parts(batch.column(self.split), start)
            start = rows.stop
        if not start:
            raise TransrecError(f"{self.path}: holds no rows; it needs one for each interaction")
        if self.time and self.times is None and not self.is_ordered:
            self.times = np.empty(self.count, np.int64)
            start = 0
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=[self.time]):
                self.times[start : start + len(batch)] = self._times(batch.column(0), start)
                start += len(batch)

    def _update_order(self, users: np.ndarray, times: np.ndarray | None) -> None:
        """Update `is_ordered`: whether the rows so far are sorted by user number and, for each user, by time."""
        if not self.is_ordered or not len(users):
            return
        steps = np.diff(users, prepend=self.previous[0])
        is_wrong = steps < 0
        if times is not None:
            is_wrong |= (steps == 0) & (np.diff(times, prepend=self.previous[1]) < 0)
        self.previous = users[-1:], self.previous[1] if times is None else times[-1:]
        self.is_ordered = not is_wrong.any()

    def _users(self, column: Any, start: int) -> np.ndarray:
        coded = self._text(column, start, USER).dictionary_encode()
        numbers = [self.user_numbers.setdefault(user, len(self.user_numbers)) for user in coded.dictionary.to_pylist()]
        return np.array(numbers, np.int32)[coded.indices.to_numpy()]

    def _items(self, column: Any, listed: Any, start: int) -> np.ndarray:
        from pyarrow import compute  # pyright: ignore[reportMissingImports]

        text = self._text(column, start, ITEM)
        rows = compute.index_in(text, value_set=listed)  # pyright: ignore[reportAttributeAccessIssue]
        if rows.null_count:
            place = int(np.argmax(rows.is_null().to_numpy(zero_copy_only=False)))
            raise TransrecError(
                f"{self.path}, row {start + place + 1}: has item {text[place].as_py()!r}, which the items file does "
                f"not list; add the item there or remove it here"
            )
        return rows.to_numpy()

    def _times(self, column: Any, start: int) -> np.ndarray | None:
        """Return the times in seconds, int64; None if a row has no time."""
        import pyarrow  # pyright: ignore[reportMissingImports]

        if column.null_count and self.requires_times:
            raise TransrecError(
                f"{self.path}, row {start + _first_null(column) + 1}: has no time, which --split time reads; give it "
                f"one or remove the row"
            )
        if column.null_count:
            return None
        if pyarrow.types.is_timestamp(column.type):
            column = column.cast(pyarrow.timestamp("s"), safe=False).cast(pyarrow.int64())
        elif not pyarrow.types.is_integer(column.type):
            raise TransrecError(
                f"{self.path}: column {TIME!r} is of type {column.type}; save whole seconds since 1970, as int64"
            )
        return column.cast(pyarrow.int64()).to_numpy()

    def _parts(self, column: Any, start: int) -> np.ndarray:
        coded = self._text(column, start, str(self.split)).dictionary_encode()
        names = coded.dictionary.to_pylist()
        for number, name in enumerate(names):
            if name.lower() not in PART_NAMES:
                row = start + int(np.argmax(coded.indices.to_numpy() == number)) + 1
                raise TransrecError(
                    f"{self.path}, row {row}: column {self.split!r} says {name!r}; it must be one of {', '.join(PARTS)}"
                )
        return np.array([PART_NAMES[name.lower()] for name in names], np.int8)[coded.indices.to_numpy()]

    def _text(self, column: Any, start: int, name: str) -> Any:
        import pyarrow  # pyright: ignore[reportMissingImports]

        if column.null_count:
            raise TransrecError(
                f"{self.path}, row {start + _first_null(column) + 1}: has no {name}; every row needs one"
            )
        return column.cast(pyarrow.string())

    def interactions(self, keeps_times: bool) -> Interactions:
        """Return the rows as one sequence per user."""
        users, items, times, parts = self.users, self.items, self.times, self.parts
        if not self.is_ordered:
            # Both sorts are stable: rows of equal time keep their order.
            order = np.argsort(users, kind="stable") if times is None else np.lexsort((times, users))
            users, items = users[order], items[order]
            times, parts = (None if column is None else column[order] for column in (times, parts))
        stops = np.searchsorted(users, np.arange(len(self.user_numbers), dtype=np.int32), side="right")
        starts = np.concatenate([[0], stops[:-1]])
        kept = times if keeps_times else None
        return Interactions(self.path, list(self.user_numbers), Sequences(items, starts, stops), kept, parts)


def _first_null(column: Any) -> int:
    return int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
