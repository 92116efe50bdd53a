"""Recommendations as rows of a table, CSV, JSON lines or Parquet, and the histories that they are made for."""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
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
# The format that each suffix of a file's name stands for.
SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet", ".md": "table", ".txt": "table"}
ROWS_AT_ONCE = 4096
Row = tuple[str, int, str, float, str]


@dataclass(frozen=True)
class Histories:
    """The users to recommend to, with their histories.

    Attributes:
        users: names of the U users.
        items: each user's history, at least one item, as places in the run's `ids`.
        items_left_out: number of interactions left out because the run does not rank their item.
        users_left_out: number of users left out because the run ranks none of their items.
        cut: the users of whom only some items were left out.
        without_target: number of users left out by `with_targets`.
    """

    users: list[str]
    items: Sequences
    items_left_out: int = 0
    users_left_out: int = 0
    cut: frozenset[str] = frozenset()
    without_target: int = 0

    def with_targets(self) -> "Histories":
        """Return only histories whose last item is a target, after at least one other.

        Users of whom items were left out are not among them: one of these items may be the target.

        Raises TransrecError if no history is left.
        """
        wanted = [row for row, user in enumerate(self.users) if self.items.lengths[row] > 1 and user not in self.cut]
        if not wanted:
            raise TransrecError("no history holds a target that is ranked and at least one item before it")
        return replace(
            self,
            users=[self.users[row] for row in wanted],
            items=self.items.select(np.array(wanted)),
            without_target=len(self.users) - len(wanted),
        )

    @property
    def left_out(self) -> str:
        """A readable description of what is left out; "" if nothing is."""
        parts = [(self.items_left_out, "interaction(s) with items that are not ranked")]
        parts += [(self.users_left_out, "user(s) without any other item")]
        parts += [(self.without_target, "user(s) with a single item, or with an item that is not ranked")]
        return " and ".join(f"{count:,} {what}" for count, what in parts if count)


def histories_of_dataset(run: FinishedRun, users: Sequence[str] = ()) -> Histories:
    """Return all users of a run's dataset, or the given ones, with all their interactions.

    Items that the run does not rank are left out, and so are users without any other item.

    Raises TransrecError for an unknown user, and if no user is left.
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
    of_users = read.sequences.select(rows)
    return _known_histories([read.users[row] for row in rows], places[of_users.flat()], of_users.lengths)


def read_histories(run: FinishedRun, path: Path, skip_unknown: bool) -> Histories:
    """Return the users in a file of `user_id<TAB>item item ...` lines; the run need not know them.

    Args:
        skip_unknown: leave out items that the run does not rank, and users without any other item.

    Raises TransrecError as `read_interactions` does and, without `skip_unknown`, for an item that is not ranked and for
    a user without items.
    """
    unknown: list[tuple[int, str, str]] = []
    read = read_interactions(path, run.catalog, unknown)
    if unknown and not skip_unknown:
        line, user, item = unknown[0]
        raise TransrecError(
            f"{path}, line {line}: user {user!r} has item {item!r}: {run.why_unranked(item)}, or leave such items out "
            f"with --skip_unknown"
        )
    empty = np.flatnonzero(read.sequences.lengths == 0)
    if len(empty) and not skip_unknown:
        raise TransrecError(f"{path}: user {read.users[empty[0]]!r} has no items; give one, or --skip_unknown")
    known = _known_histories(read.users, read.sequences.flat(), read.sequences.lengths)
    # Reading has left out the unknown items already.
    return replace(known, items_left_out=len(unknown), cut=frozenset(user for _, user, _ in unknown))


def parse_histories(run: FinishedRun, texts: Sequence[str]) -> Histories:
    """Return typed histories, item ids separated by spaces; their users are named 1, 2, and so on.

    Raises TransrecError for a history without items, and for an item that is not ranked.
    """
    for text in texts:
        if not text.split():
            raise TransrecError(f"--history {text!r}: has no items; give at least one item id")
    return Histories(
        [str(number) for number in range(1, len(texts) + 1)],
        sequences_of([run.positions(text.split()) for text in texts]),
    )


def _known_histories(users: list[str], places: np.ndarray, lengths: np.ndarray) -> Histories:
    """Return histories without unknown items (negative places, given user after user) and without users left empty.

    Raises TransrecError if no history is left.
    """
    known = places >= 0
    owner = np.repeat(np.arange(len(users)), lengths)[known]
    counts = np.bincount(owner, minlength=len(users))
    kept = np.flatnonzero(counts)
    if not len(kept):
        raise TransrecError("none of the histories holds an item that is ranked; check the item ids")
    stops = np.cumsum(counts[kept])
    items = Sequences(places[known], stops - counts[kept], stops)
    cut = frozenset(users[row] for row in kept if counts[row] < lengths[row])
    return Histories([users[row] for row in kept], items, int(np.count_nonzero(~known)), len(users) - len(kept), cut)


def rows_of(run: FinishedRun, histories: Histories, k: int, exclude_seen: bool) -> Iterator[Row]:
    """Yield the COLUMNS of each recommendation, user by user, best first. Raises TransrecError as `FinishedRun.top`."""
    users = iter(histories.users)
    with Bar(total=len(histories.users), desc="recommend", unit="user", delay=1, leave=False) as bar:
        for scores, items in run.top(histories.items, k, exclude_seen):
            for user, *row in zip(islice(users, len(scores)), scores, items, strict=True):
                top = run.to_recommendations(*row)
                # Write the shortest decimal number that gives the same float32.
                shortest = (float(str(score)) for score in top.scores)
                for rank, (item, score, title) in enumerate(zip(top.ids, shortest, top.titles, strict=True), start=1):
                    yield user, rank, item, score, title
            bar.update(len(scores))


def write(rows: Iterator[Row], out: Path | None, kind: str) -> None:
    """Write rows to a file or to standard output; a file is written completely or not at all.

    Args:
        kind: "table", "csv", "jsonl" or "parquet".

    Raises TransrecError if the file cannot be written, for Parquet on standard output, and for Parquet without pyarrow.
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
    cells = ([user, str(rank), item, f"{score:.4f}", title] for user, rank, item, score, title in rows)
    file.write(f"{markdown(list(COLUMNS), list(islice(cells, ROWS_AT_ONCE)))}\n")
    while block := list(islice(cells, ROWS_AT_ONCE)):
        # Columns may get another width, so this is a table of its own.
        file.write(f"\n{markdown(list(COLUMNS), block)}\n")


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


def output_format(out: Path | None, requested: str | None) -> str:
    """Return the format given by --format or the file's name. Raises TransrecError for a name with another suffix."""
    if requested or out is None:
        return requested or "table"
    if out.suffix.lower() not in SUFFIXES:
        raise TransrecError(f"--out {out}: its name must end in {', '.join(SUFFIXES)}; or give --format")
    return SUFFIXES[out.suffix.lower()]
