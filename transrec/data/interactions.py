"""Users' sequences as flat arrays, and their split into training, validation and test (docs/protocol.md)."""

import hashlib
from array import array
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from transrec.data import tsv
from transrec.data.catalog import Catalog
from transrec.errors import TransrecError

PARTS = ("train", "validation", "test")
# How many values `flat` gathers per step: its temporary arrays take ten times the memory of the values.
VALUES_AT_ONCE = 2**22


@dataclass(frozen=True)
class Sequences:
    """One sequence for each of U users: user u has `values[starts[u]:stops[u]]`.

    Several Sequences may share the same `values` (int32); `starts` and `stops` are int64 [U].
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
        """Return the last `width` values of each given user, left-padded with 0: int32 [users, width]."""
        columns = self.stops[users, None] - width + np.arange(width)
        real = columns >= self.starts[users, None]
        return np.where(real, self.values[np.where(real, columns, 0)], 0)

    def flat(self, users: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return the values of all given users, concatenated."""
        lengths = self.lengths[users]
        ends = np.cumsum(lengths)
        shift = self.starts[users] - (ends - lengths)
        count = int(lengths.sum())
        if count <= VALUES_AT_ONCE:
            return self.values[np.arange(count) + np.repeat(shift, lengths)]
        flat = np.empty(count, self.values.dtype)
        first = begin = 0
        while first < len(lengths):
            last = max(first + 1, int(np.searchsorted(ends, begin + VALUES_AT_ONCE, side="right")))
            end = int(ends[last - 1])
            flat[begin:end] = self.values[np.arange(begin, end) + np.repeat(shift[first:last], lengths[first:last])]
            first, begin = last, end
        return flat

    def owners(self, users: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return, for each value of `flat`, the position of its user among the given users: int64."""
        lengths = self.lengths[users]
        return np.repeat(np.arange(len(lengths)), lengths)

    def select(self, users: np.ndarray | slice) -> "Sequences":
        """Return the sequences of the given users only."""
        return Sequences(self.values, self.starts[users], self.stops[users])

    def without_last(self, count: int) -> "Sequences":
        """Return each sequence without its last `count` values."""
        return Sequences(self.values, self.starts, self.stops - count)

    def only_last(self, count: int) -> "Sequences":
        """Return the last `count` values of each sequence, or all values of a shorter sequence."""
        return Sequences(self.values, np.maximum(self.starts, self.stops - count), self.stops)


@dataclass(frozen=True)
class Interactions:
    """The interactions of all users, oldest first.

    Attributes:
        path: the behaviours file, or the first of several.
        users: [U] ids in file order.
        sequences: catalogue rows (from 0) of each user's items, stored user after user.
        times: int64 [N], seconds since 1970 of each of `sequences.values`; None if not read or not in the file.
        parts: int8 [N], the part of each in the publisher's own split, as an index into PARTS; None as for `times`.
        other_files: files that were read in addition to `path`.
    """

    path: Path
    users: list[str]
    sequences: Sequences
    times: np.ndarray | None = None
    parts: np.ndarray | None = None
    other_files: tuple[Path, ...] = ()


def read_interactions(path: Path, catalog: Catalog, unknown: list[tuple[int, str, str]] | None = None) -> Interactions:
    """Read a users file: one `user_id<TAB>item item item ...` per line.

    Args:
        unknown: if given, items that the catalogue does not list are left out of the sequences and appended here as
            (line, user, item).

    Raises TransrecError for an unreadable or empty file, a header, a line without a tab or a user id or with a
    third column, a user on two lines and, if `unknown` is None, an item that the catalogue does not list.
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
        if "\t" in items.rstrip("\t"):
            raise TransrecError(
                f"{path}, line {number}: {text[:60]!r} has more than two columns; expected user_id<TAB>item item item "
                f"..., with spaces between the items"
            )
        if user in first_line:
            raise TransrecError(
                f"{path}, line {number}: user {user!r} stands on line {first_line[user]} already; "
                f"join the two lines or rename one user"
            )
        first_line[user] = number
        listed = items.split()
        if unknown is not None and not all(item in row_of for item in listed):
            unknown.extend((number, user, item) for item in listed if item not in row_of)
            listed = [item for item in listed if item in row_of]
        try:
            values.extend([row_of[item] for item in listed])
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
    """Users' sequences, each cut into training interactions, then validation targets, then test targets.

    Items are numbered 1..n in items-file order; 0 is padding.

    Attributes:
        item_rows: int64 [n], the catalogue row of item i at i - 1.
        user_rows: int64 [U], the row of each kept user in the behaviours file.
        kept: each kept user's last L + 1 training interactions, followed by all later interactions.
        validation_starts: int64 [U], where in `kept.values` the validation targets of each user start.
        test_starts: int64 [U], where validation targets end and test targets start.
        max_seq_len: L.
        training_users: int64, the kept users whose sequences are trained on (from 0, ascending).
        evaluated_users: int64, the kept users whose targets are evaluated (from 0, ascending); None: all.
        times: int64, seconds since 1970 of each of `kept.values`; None if times were not read.
        rule: the name of the split and where it cuts, as shown to users.
    """

    item_rows: np.ndarray
    user_rows: np.ndarray
    kept: Sequences
    validation_starts: np.ndarray
    test_starts: np.ndarray
    max_seq_len: int
    training_users: np.ndarray
    times: np.ndarray | None = None
    rule: str = "leave-one-out"
    evaluated_users: np.ndarray | None = None

    @property
    def item_count(self) -> int:
        return len(self.item_rows)

    @property
    def user_count(self) -> int:
        return len(self.user_rows)

    @property
    def train(self) -> Sequences:
        """At most L + 1 items of each training user; the first L predict the last L."""
        users = self.training_users
        return Sequences(self.kept.values, self.kept.starts[users], self.validation_starts[users])

    @cached_property
    def validation(self) -> Sequences:
        """One sequence per validation target, its last item; the at most L items before it are the context."""
        return self.up_to_targets("validation").only_last(self.max_seq_len + 1)

    @cached_property
    def test(self) -> Sequences:
        """One sequence per test target, laid out as in `validation`."""
        return self.up_to_targets("test").only_last(self.max_seq_len + 1)

    def history(self, part: str) -> Sequences:
        """Return the items that evaluation masks, one sequence per target: all of `kept` before the target."""
        return self.up_to_targets(part).without_last(1)

    def up_to_targets(self, part: str) -> Sequences:
        """Return, per target of "validation" or "test", its user's kept interactions up to and including the target."""
        users, places = self.targets(part)
        return Sequences(self.kept.values, self.kept.starts[users], places + 1)

    def targets(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Return each target's user (from 0) and index in `kept.values`, int64 [T] each, ordered by user and time.

        A user's first interaction is never a target, since it has no context.
        """
        firsts, stops = self._bounds(part)
        firsts = np.maximum(firsts, self.kept.starts + 1)
        lengths = np.maximum(stops - firsts, 0)
        if self.evaluated_users is not None:
            lengths[np.delete(np.arange(self.user_count), self.evaluated_users)] = 0
        ends = np.cumsum(lengths)
        places = np.arange(lengths.sum()) + np.repeat(firsts - (ends - lengths), lengths)
        return np.repeat(np.arange(self.user_count), lengths), places

    def count_without_history(self, part: str) -> int:
        """Return how many interactions of a part are not targets because they are their user's first."""
        firsts, stops = self._bounds(part)
        return int(np.count_nonzero((firsts == self.kept.starts) & (stops > firsts)))

    def count_cut_users(self, read: Sequences) -> int:
        """Return how many kept users have lost their earliest interactions compared with the sequences read."""
        return int(np.count_nonzero(self.kept.lengths < read.lengths[self.user_rows]))

    def _bounds(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        bounds = (self.validation_starts, self.test_starts, self.kept.stops)
        first = PARTS.index(part) - 1
        return bounds[first], bounds[first + 1]

    def train_counts(self) -> np.ndarray:
        """Return how often each item occurs in the training sequences: int64 [n + 1]; entry 0 (padding) is 0."""
        return np.bincount(self.train.flat(), minlength=self.item_count + 1)


def kept_users(interactions: Interactions, min_seq_len: int) -> np.ndarray:
    """Return the rows of users with at least `min_seq_len` interactions. Raises TransrecError if there are none."""
    lengths = interactions.sequences.lengths
    users = np.flatnonzero(lengths >= min_seq_len)
    if not len(users):
        longest = int(lengths.max(initial=0))
        raise TransrecError(
            f"{interactions.path}: none of its {len(lengths)} users has {min_seq_len} interactions or more "
            f"(the longest sequence has {longest}); lower --min_seq_len"
        )
    return users


def cut_sequences(
    interactions: Interactions,
    users: np.ndarray,
    starts: tuple[np.ndarray, np.ndarray],
    max_seq_len: int,
    catalog_size: int | None = None,
) -> Split:
    """Cut each user's sequence at two places.

    Args:
        users: rows of the kept users.
        starts: where each kept user's validation and test targets start in `sequences.values`: int64 [U] each.
        catalog_size: how many items the catalogue lists, to rank them all; None: rank only items of kept interactions.
    """
    whole = interactions.sequences.select(users)
    chosen = Sequences(whole.values, np.maximum(whole.starts, starts[0] - (max_seq_len + 1)), whole.stops)
    values = chosen.flat()
    if catalog_size is None:
        touched = np.zeros(1 + values.max(), dtype=bool)
        touched[values] = True
        values, item_rows = np.cumsum(touched, dtype=np.int32)[values], np.flatnonzero(touched)
    else:
        values, item_rows = values + 1, np.arange(catalog_size)
    stops = np.cumsum(chosen.lengths)
    shift = stops - chosen.stops
    times = None
    if interactions.times is not None:
        times = Sequences(interactions.times, chosen.starts, chosen.stops).flat()
    return Split(
        item_rows=item_rows,
        user_rows=users,
        kept=Sequences(values, stops - chosen.lengths, stops),
        validation_starts=starts[0] + shift,
        test_starts=starts[1] + shift,
        max_seq_len=max_seq_len,
        training_users=np.arange(len(users)),
        times=times,
    )


def leave_one_out(
    interactions: Interactions, max_seq_len: int, min_seq_len: int, catalog_size: int | None = None
) -> Split:
    """Drop users with fewer than `min_seq_len` interactions, keep the others' last L + 3, and number the items.

    Raises TransrecError if no user is left.
    """
    users = kept_users(interactions, min_seq_len)
    stops = interactions.sequences.stops[users]
    return cut_sequences(interactions, users, (stops - 2, stops - 1), max_seq_len, catalog_size)


def train_on_fraction(split: Split, users: list[str], fraction: float, seed: int) -> Split:
    """Return the split with only a fraction of its users in training; ranked items and evaluated users stay the same.

    Args:
        users: ids of all users of the behaviours file.
        fraction: above 0, at most 1; at least one user is kept.
        seed: decides which users are drawn; see `_draw_users`.
    """
    return replace(
        split, training_users=_draw_users(split, users, max(1, round(fraction * split.user_count)), str(seed))
    )


def evaluate_on(split: Split, users: list[str], count: int, seed: int) -> Split:
    """Return the split with only `count` random users evaluated, or all users if there are no more than that.

    Args:
        users: ids of all users of the behaviours file.
        seed: decides which users are drawn; see `_draw_users`. Training users are drawn separately.

    Raises TransrecError if no user of the sample has a validation target, or none has a test target.
    """
    sample = replace(split, evaluated_users=_draw_users(split, users, count, f"evaluation {seed}"))
    for part in PARTS[1:]:
        if not len(sample.targets(part)[0]):
            raise TransrecError(
                f"--eval_users {count}: no user of the sample has a {part} target; give more, or another --subset_seed"
            )
    return sample


def _draw_users(split: Split, users: list[str], count: int, seed: str) -> np.ndarray:
    """Draw `count` of the kept users, numbered from 0, ascending.

    Users are ordered by a hash of `seed` and their id, and the first `count` are taken. With the same seed, a smaller
    sample is therefore a subset of a larger one, whatever the order of the file.
    """
    hashes = [hashlib.sha256(f"{seed}:{users[row]}".encode()).digest() for row in split.user_rows]
    return np.sort(np.array(sorted(range(len(hashes)), key=hashes.__getitem__)[:count]))
