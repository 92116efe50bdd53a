"""Slices: groups of targets for which metrics are reported, in addition to all targets."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from transrec import options
from transrec.data.dataset import Dataset
from transrec.data.moments import moment
from transrec.errors import TransrecError
from transrec.registry import Registry

# Maximum number of category groups; if there are more categories, the smallest ones share the last group.
CATEGORIES = 10
QUARTERS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Targets:
    """The T targets of a part of a dataset's split, "validation" or "test", in the order of `Split.targets`."""

    dataset: Dataset
    part: str

    @cached_property
    def users(self) -> np.ndarray:
        """The user of each target, counted from 0 among the kept users: int64 [T]."""
        return self.dataset.split.targets(self.part)[0]

    @cached_property
    def items(self) -> np.ndarray:
        """The item number of each target, 1..n: int32 [T]."""
        return self.dataset.split.kept.values[self.dataset.split.targets(self.part)[1]]


class Slice:
    """Base of all slices.

    Attributes:
        label: the slice's name in tables.
    """

    Options: type[options.Options] = options.Options
    label: str

    def groups(self, targets: Targets) -> tuple[list[str], np.ndarray]:
        """Return the names of the groups in order, and the index of each target's group: int64 [T].

        Raises TransrecError if the dataset lacks the information.
        """
        raise NotImplementedError


SLICES: Registry[Slice] = Registry("slice", Slice, __name__, flag="slices", several=True)
register = SLICES.register


@register("popularity")
class ByPopularity(Slice):
    """Groups targets by the popularity of their item in training.

    The items of head, middle and tail, from the most to the least popular, each account for about a third of all
    training interactions; cold items have none.
    """

    label = "target"

    def groups(self, targets: Targets) -> tuple[list[str], np.ndarray]:
        counts = targets.dataset.split.train_counts()
        order = np.argsort(-counts, kind="stable")
        # Interactions of more popular items only, so that the most popular item is always in the head.
        before = np.cumsum(counts[order]) - counts[order]
        group = np.empty(len(counts), dtype=np.int64)
        group[order] = np.minimum(3 * before // max(1, counts.sum()), 2)
        group[counts == 0] = 3
        return ["head", "middle", "tail", "cold"], group[targets.items]


@register("history")
class ByHistory(Slice):
    """Groups targets by the number of kept interactions before them, into quarters of the targets."""

    label = "history"

    def groups(self, targets: Targets) -> tuple[list[str], np.ndarray]:
        lengths = targets.dataset.split.history(targets.part).lengths
        return _quarters(lengths, lambda number: f"{number:,}")


@register("time")
class ByTime(Slice):
    """Groups targets by their time, into quarters of the targets."""

    label = "time"

    def groups(self, targets: Targets) -> tuple[list[str], np.ndarray]:
        split = targets.dataset.split
        if split.times is None:
            raise TransrecError(
                f"--slices time: {targets.dataset.folder} has no times, or its split does not read them; use "
                f"--split time, or leave the slice out"
            )
        return _quarters(split.times[split.targets(targets.part)[1]], moment)


@register("category")
class ByCategory(Slice):
    """Groups targets by their category (column `category` of the items file); small categories share a group."""

    label = "category"

    def groups(self, targets: Targets) -> tuple[list[str], np.ndarray]:
        texts = targets.dataset.catalog.with_text("category").texts
        rows = targets.dataset.split.item_rows[targets.items - 1]
        categories = np.array([texts[row].strip() or "none" for row in rows.tolist()])
        names, index, counts = np.unique(categories, return_inverse=True, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        place = np.empty(len(names), dtype=np.int64)
        place[order] = np.arange(len(names))
        labels = [str(names[number]) for number in order]
        if len(labels) > CATEGORIES:
            labels = [*labels[: CATEGORIES - 1], "others"]
        return labels, np.minimum(place, len(labels) - 1)[index]


def _quarters(values: np.ndarray, text: Callable[[int], str]) -> tuple[list[str], np.ndarray]:
    """Split whole numbers into up to four groups of about equal size; equal numbers are in the same group."""
    ends = np.unique(np.quantile(values, QUARTERS, method="lower"))
    index = np.searchsorted(ends, values, side="left")
    names = []
    for group in np.unique(index):
        of_group = values[index == group]
        low, high = text(int(of_group.min())), text(int(of_group.max()))
        names.append(low if low == high else f"{low} to {high}")
    return names, np.unique(index, return_inverse=True)[1]
