"""What a dataset is like: sizes, sequence lengths, popularity, and targets that no model can hit."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from transrec.data.dataset import Dataset
from transrec.data.interactions import Sequences, Split


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
    """The users, from 0 and ascending, whose "validation" or "test" target is among the items that `history` gives."""
    return np.flatnonzero(_last_repeats(split.kept.without_last({"validation": 1, "test": 0}[part])))


def _last_repeats(sequences: Sequences) -> np.ndarray:
    """Whether the last value of each sequence, none of them empty, stands in it more than once: bool [U]."""
    owners = sequences.owners()
    last = sequences.values[sequences.stops - 1]
    return np.bincount(owners[sequences.flat() == last[owners]], minlength=len(sequences)) > 1
