"""Users' sequences as flat arrays, and the leave-one-out split (docs/protocol.md)."""

import hashlib
from array import array
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from transrec.data import tsv
from transrec.data.catalog import Catalog
from transrec.errors import TransrecError


@dataclass(frozen=True)
class Sequences:
    """One sequence for each of U users: user u has `values[starts[u]:stops[u]]`.

    Several Sequences may look into the same `values` (int32); `starts` and `stops` are int64 [U].
    """

    values: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, user: int) -> np.ndarray:
        return self.values[self.starts[user] : self.stops[user]]

    @property
    def lengths(self) -> np.ndarray:
        return self.stops - self.starts

    def last(self, width: int, users: np.ndarray | slice = slice(None)) -> np.ndarray:
        """The last `width` values of each given user, left-padded with 0: int32 [users, width]."""
        columns = self.stops[users, None] - width + np.arange(width)
        real = columns >= self.starts[users, None]
        return np.where(real, self.values[np.where(real, columns, 0)], 0)

    def flat(self, users: np.ndarray | slice = slice(None)) -> np.ndarray:
        """All values of the given users, one after the other."""
        lengths = self.lengths[users]
        shift = self.starts[users] - (np.cumsum(lengths) - lengths)
        return self.values[np.arange(lengths.sum()) + np.repeat(shift, lengths)]

    def owners(self, users: np.ndarray | slice = slice(None)) -> np.ndarray:
        """For each of the values that `flat` gives the row of its user among the given ones: int64."""
        lengths = self.lengths[users]
        return np.repeat(np.arange(len(lengths)), lengths)

    def of(self, users: np.ndarray) -> "Sequences":
        """The sequences of the given users only."""
        return Sequences(self.values, self.starts[users], self.stops[users])

    def without_last(self, count: int) -> "Sequences":
        """Each sequence less its last `count` values."""
        return Sequences(self.values, self.starts, self.stops - count)

    def only_last(self, count: int) -> "Sequences":
        """The last `count` values of each sequence, or all of it if it is shorter."""
        return Sequences(self.values, np.maximum(self.starts, self.stops - count), self.stops)


@dataclass(frozen=True)
class Interactions:
    """A behaviours file: `users` [U] ids in file order, `sequences` of catalogue rows (from 0), oldest first."""

    path: Path
    users: list[str]
    sequences: Sequences


def read_interactions(path: Path, catalog: Catalog) -> Interactions:
    """Read a users file: one `user_id<TAB>item item item ...` per line.

    Raises TransrecError for an unreadable or empty file, a header, a line without a tab or a user id, a user on two
    lines, and an item that the catalogue does not list.
    """
    row_of = catalog.index()
    first_line: dict[str, int] = {}
    values, stops = array("i"), array("q")
    for number, text in tsv.lines(path, "users"):
        if not first_line:
            tsv.check_no_header(path, number, text)
        user, tab, items = text.partition("\t")
        if not tab or not user:
            raise TransrecError(
                f"{path}, line {number}: {text[:60]!r} is malformed; expected user_id<TAB>item item item ..."
            )
        if user in first_line:
            raise TransrecError(
                f"{path}, line {number}: user {user!r} stands on line {first_line[user]} already; "
                f"join the two lines or rename one user"
            )
        first_line[user] = number
        try:
            values.extend([row_of[item] for item in items.split()])
        except KeyError as error:
            raise TransrecError(
                f"{path}, line {number}: user {user!r} has item {error.args[0]!r}, which {catalog.path} does not list; "
                f"add the item there or remove it here"
            ) from None
        stops.append(len(values))
    ends = np.frombuffer(stops, dtype=np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    return Interactions(path, list(first_line), Sequences(np.frombuffer(values, dtype=np.int32), starts, ends))


@dataclass(frozen=True)
class Split:
    """Leave-one-out split. Items are numbered 1..n in items-file order; 0 is padding.

    Attributes:
        item_rows: int64 [n], the catalogue row of item i at i - 1.
        user_rows: int64 [U], the row in the behaviours file of each kept user.
        kept: s, the last L + 3 interactions of each kept user.
        max_seq_len: L.
        training_users: int64, the kept users who are trained on (from 0, ascending); all are evaluated.
    """

    item_rows: np.ndarray
    user_rows: np.ndarray
    kept: Sequences
    max_seq_len: int
    training_users: np.ndarray

    @property
    def item_count(self) -> int:
        return len(self.item_rows)

    @property
    def user_count(self) -> int:
        return len(self.user_rows)

    @property
    def train(self) -> Sequences:
        """s[:-2] of each training user: at most L + 1 items, of which the first L predict the last L."""
        return self.kept.of(self.training_users).without_last(2)

    @property
    def validation(self) -> Sequences:
        """s[-(L+2):-1]: its last item is the target."""
        return self.kept.without_last(1).only_last(self.max_seq_len + 1)

    @property
    def test(self) -> Sequences:
        """s[-(L+1):]: its last item is the target."""
        return self.kept.only_last(self.max_seq_len + 1)

    def history(self, part: str) -> Sequences:
        """The items that evaluation masks: the training sequence for "validation", s[:-1] for "test"."""
        return self.kept.without_last({"validation": 2, "test": 1}[part])

    def train_counts(self) -> np.ndarray:
        """How often each item occurs in the training sequences: int64 [n + 1], entry 0 (padding) is 0."""
        return np.bincount(self.train.flat(), minlength=self.item_count + 1)


def leave_one_out(interactions: Interactions, max_seq_len: int, min_seq_len: int) -> Split:
    """Drop users of fewer than `min_seq_len` interactions, keep the last L + 3 of the others, and number the items.

    Raises TransrecError when no user is left.
    """
    sequences = interactions.sequences
    users = np.flatnonzero(sequences.lengths >= min_seq_len)
    if not len(users):
        longest = int(sequences.lengths.max(initial=0))
        raise TransrecError(
            f"{interactions.path}: none of its {len(sequences)} users has {min_seq_len} interactions or more "
            f"(the longest sequence has {longest}); lower --min_seq_len"
        )
    kept = sequences.of(users).only_last(max_seq_len + 3)
    values = kept.flat()
    touched = np.zeros(1 + values.max(), dtype=bool)
    touched[values] = True
    number = np.cumsum(touched, dtype=np.int32)
    stops = np.cumsum(kept.lengths)
    return Split(
        item_rows=np.flatnonzero(touched),
        user_rows=users,
        kept=Sequences(number[values], stops - kept.lengths, stops),
        max_seq_len=max_seq_len,
        training_users=np.arange(len(users)),
    )


def train_on_fraction(split: Split, users: list[str], fraction: float, seed: int) -> Split:
    """The same split, trained on a fraction of its users: the same users and items are ranked as without it.

    Users are ordered by a hash of `seed` and their id, and the first are taken: under one seed a smaller fraction is a
    subset of a larger one, whatever the order of the file.

    Args:
        users: ids of all users of the behaviours file.
        fraction: above 0, at most 1; at least one user is kept.
    """
    hashes = [hashlib.sha256(f"{seed}:{users[row]}".encode()).digest() for row in split.user_rows]
    count = max(1, round(fraction * len(hashes)))
    chosen = sorted(range(len(hashes)), key=hashes.__getitem__)[:count]
    return replace(split, training_users=np.sort(np.array(chosen)))
