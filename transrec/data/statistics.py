"""Statistics of a dataset: sizes, sequence lengths, popularity, and targets that no model can hit."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from transrec.data.dataset import Dataset
from transrec.data.interactions import Sequences, Split

# How many targets `repeated_targets` handles per step, to bound the memory of their concatenated histories.
TARGETS_AT_ONCE = 2**16


@dataclass(frozen=True)
class Activity:
    """Numbers of interactions: `counts` int64 [n] of each item, `lengths` int64 [U] of each user."""

    counts: np.ndarray
    lengths: np.ndarray

    @property
    def users(self) -> int:
        return len(self.lengths)

    @property
    def items(self) -> int:
        return len(self.counts)

    @property
    def interactions(self) -> int:
        return int(self.lengths.sum())

    @property
    def untouched(self) -> int:
        """The number of items without any interaction."""
        return int(np.count_nonzero(self.counts == 0))

    @property
    def density(self) -> float:
        """The number of interactions per pair of user and item."""
        return self.interactions / (self.users * self.items)

    @cached_property
    def ranked(self) -> np.ndarray:
        """`counts` from the most popular item to the least: int64 [n]."""
        return np.sort(self.counts)[::-1]

    def top_share(self, fraction: float) -> float:
        """Return the share of all interactions that the most popular `fraction` of the items (at least one) receive."""
        # Rounded before ceil, because 0.1 * 30 is slightly more than 3 in floating point.
        top = int(np.ceil(np.round(fraction * self.items, 6)))
        return float(self.ranked[: max(1, top)].sum() / self.interactions)


def activity_as_read(dataset: Dataset) -> Activity:
    """Return the activity of all users of the behaviours file on all items of the items file."""
    sequences = dataset.interactions.sequences
    return Activity(np.bincount(sequences.flat(), minlength=len(dataset.catalog.ids)), sequences.lengths)


def activity_as_kept(split: Split) -> Activity:
    """Return the activity that is left after short users are dropped and long sequences are cut."""
    return Activity(np.bincount(split.kept.flat(), minlength=split.item_count + 1)[1:], split.kept.lengths)


def cold_items(split: Split) -> np.ndarray:
    """Return the items, of 1..n, that occur in no training sequence, ascending."""
    return np.flatnonzero(split.train_counts()[1:] == 0) + 1


def repeated_targets(split: Split, part: str) -> np.ndarray:
    """Return the indices of the "validation" or "test" targets whose item already occurs in their `history`: int64."""
    history, (_, places) = split.history(part), split.targets(part)
    is_repeated = np.zeros(len(places), dtype=bool)
    for start in range(0, len(places), TARGETS_AT_ONCE):
        block = np.arange(start, min(start + TARGETS_AT_ONCE, len(places)))
        owners = history.owners(block)
        same = history.flat(block) == split.kept.values[places[block]][owners]
        is_repeated[block] = np.bincount(owners[same], minlength=len(block)) > 0
    return np.flatnonzero(is_repeated)


def cold_targets(split: Split, part: str) -> np.ndarray:
    """Return the indices of the targets of a part whose item occurs in no training sequence: int64."""
    _, places = split.targets(part)
    return np.flatnonzero(split.train_counts()[split.kept.values[places]] == 0)


def early_targets(split: Split, part: str) -> np.ndarray | None:
    """Return the indices of a part's targets before the last training interaction of all users; None without times."""
    if split.times is None:
        return None
    _, places = split.targets(part)
    last = Sequences(split.times, split.train.starts, split.train.stops).flat().max()
    return np.flatnonzero(split.times[places] < last)


@dataclass(frozen=True)
class Repeats:
    """Users (rows) and items (values) that interact more than once, and how often: int64 [P], by user, then item."""

    users: np.ndarray
    items: np.ndarray
    counts: np.ndarray

    @property
    def interactions(self) -> int:
        """The number of interactions with an item that the user had already interacted with."""
        return int(self.counts.sum()) - len(self.counts)

    def most(self, count: int) -> list[tuple[int, int, int]]:
        """Return user, item and number of interactions of the `count` most frequent pairs."""
        order = np.argsort(-self.counts, kind="stable")[:count]
        return [(int(self.users[pair]), int(self.items[pair]), int(self.counts[pair])) for pair in order]


def repeats(sequences: Sequences) -> Repeats:
    """Find the pairs of a user and an item that interact more than once."""
    base = int(sequences.values.max(initial=0)) + 1
    pairs, counts = np.unique(sequences.owners() * base + sequences.flat(), return_counts=True)
    pairs, counts = pairs[counts > 1], counts[counts > 1]
    return Repeats(pairs // base, pairs % base, counts)


def same_texts(texts: list[str]) -> list[list[int]]:
    """Group the rows of items with equal non-empty text, ignoring case and outer spaces; largest group first."""
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        if plain := text.strip().casefold():
            rows[plain].append(row)
    return sorted((group for group in rows.values() if len(group) > 1), key=len, reverse=True)
