"""Recommendations as rows of a table, CSV, JSON lines or Parquet; and the histories that they are made of."""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from transrec.data.interactions import Sequences, read_interactions
from transrec.errors import TransrecError, about_file, printable
from transrec.finished import FinishedRun, sequences_of
from transrec.paths import atomic_write
from transrec.progress import Bar
from transrec.reports.tables import markdown

COLUMNS: tuple[str, ...] = ("user", "rank", "item", "score", "title")
# Of a file's name, and what is meant by it.
SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet", ".md": "table", ".txt": "table"}
ROWS_AT_ONCE = 4096
Row = tuple[str, int, str, float, str]


@dataclass(frozen=True)
class Histories:
    """Whom items are recommended to.

    Attributes:
        users: [U] names.
        items: of each user at least one, by its place in the run's `ids`.
        items_left_out: how many of their items the run does not rank.
        users_left_out: how many users have no other.
    """

    users: list[str]
    items: Sequences
    items_left_out: int = 0
    users_left_out: int = 0

    @property
    def left_out(self) -> str:
        """What is left out, for people; "" where nothing is."""
        what = [(self.items_left_out, "interaction(s) with items that are not ranked")]
        what += [(self.users_left_out, "user(s) without any other item")]
        return " and ".join(f"{count:,} {of}" for count, of in what if count)


def of_dataset(run: FinishedRun, users: Sequence[str] = ()) -> Histories:
    """All users of a run's dataset with all that they did, or the given ones. Raises TransrecError for an unknown user.

    What nobody whom the run kept has is left out, and so is who has nothing else.
    """
    read, index = run.dataset.interactions, run.index
    rows = np.arange(len(read.users))
    if users:
        place = {user: row for row, user in enumerate(read.users)}
        for user in users:
            if user not in place:
                raise TransrecError(f"--user {user!r}: {read.path} has no such user; check the id")
        rows = np.array([place[user] for user in users])
    places = np.array([index.get(item, -1) for item in run.dataset.catalog.ids], dtype=np.int32)
    of_users = read.sequences.of(rows)
    return _known([read.users[row] for row in rows], places[of_users.flat()], of_users.lengths)


def of_file(run: FinishedRun, path: Path, skip_unknown: bool) -> Histories:
    """The users of a file of `user_id<TAB>item item ...` lines, whom the run may never have seen.

    Args:
        skip_unknown: leave items out that are not ranked, and users without any other.

    Raises TransrecError as `read_interactions`; and, without `skip_unknown`, for such an item and a user without items.
    """
    unknown: list[tuple[int, str, str]] = []
    read = read_interactions(path, run.catalog, unknown)
    if unknown and not skip_unknown:
        line, user, item = unknown[0]
        raise TransrecError(
            f"{path}, line {line}: user {user!r} has item {item!r}: {run.unranked(item)}, or leave such items out with "
            f"--skip_unknown"
        )
    empty = np.flatnonzero(read.sequences.lengths == 0)
    if len(empty) and not skip_unknown:
        raise TransrecError(f"{path}: user {read.users[empty[0]]!r} has no items; give one, or --skip_unknown")
    known = _known(read.users, read.sequences.flat(), read.sequences.lengths)
    return Histories(known.users, known.items, len(unknown), known.users_left_out)


def of_texts(run: FinishedRun, texts: Sequence[str]) -> Histories:
    """Histories as they are typed, item ids with spaces between, who are called 1, 2, and so on.

    Raises TransrecError for one without items and an item that is not ranked.
    """
    for text in texts:
        if not text.split():
            raise TransrecError(f"--history {text!r}: has no items; give at least one item id")
    return Histories(
        [str(number) for number in range(1, len(texts) + 1)],
        sequences_of([run.numbers(text.split()) for text in texts]),
    )


def _known(users: list[str], places: np.ndarray, lengths: np.ndarray) -> Histories:
    """Of users' places, one user's after the other's, those from 0 on; raises TransrecError where none is left."""
    known = places >= 0
    owner = np.repeat(np.arange(len(users)), lengths)[known]
    of_each = np.bincount(owner, minlength=len(users))
    kept = np.flatnonzero(of_each)
    if not len(kept):
        raise TransrecError("none of the histories holds an item that is ranked; check the item ids")
    stops = np.cumsum(of_each[kept])
    items = Sequences(places[known], stops - of_each[kept], stops)
    return Histories([users[row] for row in kept], items, int(np.count_nonzero(~known)), len(users) - len(kept))


def rows_of(run: FinishedRun, histories: Histories, k: int, exclude_seen: bool) -> Iterator[Row]:
    """The COLUMNS of each recommendation, user by user, best first. Raises TransrecError as `FinishedRun.top`."""
    users = iter(histories.users)
    with Bar(total=len(histories.users), desc="recommend", unit="user", delay=1, leave=False) as bar:
        for scores, items in run.top(histories.items, k, exclude_seen):
            for user, *of in zip(islice(users, len(scores)), scores, items, strict=True):
                found = run.named(*of)
                # The shortest decimal number that stands for the same float32.
                told = (float(str(score)) for score in found.scores)
                for rank, (item, score, title) in enumerate(zip(found.ids, told, found.titles, strict=True), start=1):
                    yield user, rank, item, score, title
            bar.update(len(scores))


def write(rows: Iterator[Row], out: Path | None, kind: str) -> None:
    """Write rows to a file, whole or not at all, or to standard output.

    Args:
        kind: "table", "csv", "jsonl" or "parquet".

    Raises TransrecError where the file cannot be written, for Parquet on standard output, and without pyarrow for it.
    """
    if kind == "parquet":
        if out is None:
            raise TransrecError("--format parquet: needs a file; name it with --out")
        _write_parquet(rows, out)
        return
    with _opened(out) as file:
        WRITERS[kind](rows, file)


@contextmanager
def _opened(out: Path | None) -> Iterator[IO[str]]:
    temporary: AbstractContextManager[Path | None] = atomic_write(out) if out else nullcontext()
    with temporary as path, about_file(out or "standard output"):
        if path is None:
            yield sys.stdout
            return
        with open(path, "w", encoding="utf-8", newline="") as file:
            yield file


def _write_table(rows: Iterator[Row], file: IO[str]) -> None:
    header = list(COLUMNS)
    while block := list(islice(rows, ROWS_AT_ONCE)):
        cells = [[user, str(rank), item, f"{score:.4f}", title] for user, rank, item, score, title in block]
        file.write(f"{markdown(header, cells)}\n")


def _write_csv(rows: Iterator[Row], file: IO[str]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([printable(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)


def _write_lines(rows: Iterator[Row], file: IO[str]) -> None:
    for row in rows:
        file.write(json.dumps(dict(zip(COLUMNS, row, strict=True))) + "\n")


WRITERS: dict[str, Callable[[Iterator[Row], IO[str]], None]] = {
    "table": _write_table,
    "csv": _write_csv,
    "jsonl": _write_lines,
}


def _write_parquet(rows: Iterator[Row], out: Path) -> None:
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
        from pyarrow.parquet import ParquetWriter  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise TransrecError(f"{out}: writing Parquet needs pyarrow; pip install 'transrec[import]'") from error
    types = (pyarrow.string(), pyarrow.int32(), pyarrow.string(), pyarrow.float32(), pyarrow.string())
    schema = pyarrow.schema(list(zip(COLUMNS, types, strict=True)))
    with atomic_write(out) as path, ParquetWriter(path, schema) as file:
        while block := list(islice(rows, 64 * ROWS_AT_ONCE)):
            columns: list[Any] = [list(column) for column in zip(*block, strict=True)]
            file.write_table(pyarrow.table(columns, schema=schema))


def kind_of(out: Path | None, given: str | None) -> str:
    """The format that --format or the file's name says. Raises TransrecError for a name that says none."""
    if given or out is None:
        return given or "table"
    if out.suffix.lower() not in SUFFIXES:
        raise TransrecError(f"--out {out}: its name must end in {', '.join(SUFFIXES)}; or give --format")
    return SUFFIXES[out.suffix.lower()]
