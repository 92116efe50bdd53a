"""What a dataset is like: sizes, sequence lengths, popularity, and targets that no model can hit."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from transrec.data.dataset import Dataset
from transrec.data.interactions import Sequences, Split

# Histories of so many targets are laid end to end at a time.
TARGETS_AT_ONCE = 2**16


@dataclass(frozen=True)
class Activity:
    """Who did how much: `counts` int64 [n] interactions of each item, `lengths` int64 [U] of each user."""

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
        """Items without any interaction."""
        return int(np.count_nonzero(self.counts == 0))

    @property
    def density(self) -> float:
        """Interactions per pair of user and item."""
        return self.interactions / (self.users * self.items)

    @cached_property
    def ranked(self) -> np.ndarray:
        """`counts` from the most popular item to the least: int64 [n]."""
        return np.sort(self.counts)[::-1]

    def top_share(self, fraction: float) -> float:
        """The share of all interactions on the most popular `fraction` of the items, at least one item."""
        # Rounded first: 0.1 * 30 is a little more than 3.
        top = int(np.ceil(np.round(fraction * self.items, 6)))
        return float(self.ranked[: max(1, top)].sum() / self.interactions)


def as_read(dataset: Dataset) -> Activity:
    """All users of the behaviours file and all items of the items file."""
    sequences = dataset.interactions.sequences
    return Activity(np.bincount(sequences.flat(), minlength=len(dataset.catalog.ids)), sequences.lengths)


def as_kept(split: Split) -> Activity:
    """What is left when short users are dropped and long sequences cut."""
    return Activity(np.bincount(split.kept.flat(), minlength=split.item_count + 1)[1:], split.kept.lengths)


def cold_items(split: Split) -> np.ndarray:
    """The items 1..n in no training sequence, ascending."""
    return np.flatnonzero(split.train_counts()[1:] == 0) + 1


def repeated_targets(split: Split, part: str) -> np.ndarray:
    """The targets of a part, "validation" or "test", by number, that are among the items of their `history`: int64."""
    history, (_, places) = split.history(part), split.targets(part)
    found = np.zeros(len(places), dtype=bool)
    for start in range(0, len(places), TARGETS_AT_ONCE):
        block = np.arange(start, min(start + TARGETS_AT_ONCE, len(places)))
        owners = history.owners(block)
        same = history.flat(block) == split.kept.values[places[block]][owners]
        found[block] = np.bincount(owners[same], minlength=len(block)) > 0
    return np.flatnonzero(found)


def cold_targets(split: Split, part: str) -> np.ndarray:
    """The targets of a part, by number, whose item is in no training sequence: int64."""
    _, places = split.targets(part)
    return np.flatnonzero(split.train_counts()[split.kept.values[places]] == 0)


def early_targets(split: Split, part: str) -> np.ndarray | None:
    """The targets of a part, by number, before the last training interaction of all users; None without times."""
    if split.times is None:
        return None
    _, places = split.targets(part)
    last = Sequences(split.times, split.train.starts, split.train.stops).flat().max()
    return np.flatnonzero(split.times[places] < last)


@dataclass(frozen=True)
class Repeats:
    """Users, by row, and items, by value, that meet more than once, and how often: int64 [P] each, by user and item."""

    users: np.ndarray
    items: np.ndarray
    counts: np.ndarray

    @property
    def interactions(self) -> int:
        """How many interactions are of a user with an item that the user has interacted with before."""
        return int(self.counts.sum()) - len(self.counts)

    def most(self, count: int) -> list[tuple[int, int, int]]:
        """User, item and number of the `count` pairs that meet oftenest."""
        order = np.argsort(-self.counts, kind="stable")[:count]
        return [(int(self.users[at]), int(self.items[at]), int(self.counts[at])) for at in order]


def repeats(sequences: Sequences) -> Repeats:
    """The pairs of a user and an item that meet more than once."""
    base = int(sequences.values.max(initial=0)) + 1
    pairs, counts = np.unique(sequences.owners() * base + sequences.flat(), return_counts=True)
    pairs, counts = pairs[counts > 1], counts[counts > 1]
    return Repeats(pairs // base, pairs % base, counts)


def same_texts(texts: list[str]) -> list[list[int]]:
    """Rows of the items that share a text, capitals and outer spaces aside: largest group first; empty texts do not."""
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        if plain := text.strip().casefold():
            rows[plain].append(row)
    return sorted((group for group in rows.values() if len(group) > 1), key=len, reverse=True)
