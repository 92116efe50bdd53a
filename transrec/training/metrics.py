"""Metrics by name: HR@k, NDCG@k and MRR, from the rank of each user's one relevant item (docs/protocol.md)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from transrec.errors import TransrecError
from transrec.options import Options
from transrec.registry import Registry


@dataclass(frozen=True)
class Ranking:
    """What a model makes of U users.

    Attributes:
        ranks: float64 [U], of each user's target among all items, 1 is best; infinity where it cannot be ranked, which
            counts as a miss.
        lists: int32 [U, K], each user's items of the highest scores, best first, numbered 1..n; K is the largest
            cut-off, or n. 0 where no item is left to recommend. None unless a metric asks for them.
        item_count: n.
    """

    ranks: np.ndarray
    lists: np.ndarray | None = None
    item_count: int = 0


class Metric:
    """Base of all metrics, made of the values of its flags by their names.

    Attributes:
        Options: the dataclass of its flags.
        label: what it is called in results; one with a cut-off LABEL@k.
        has_cutoff: whether there is one value for each k of --cutoffs.
        needs_lists: whether it reads `Ranking.lists`.
    """

    Options: type[Options] = Options
    label: ClassVar[str]
    has_cutoff: ClassVar[bool] = True
    needs_lists: ClassVar[bool] = False

    def __call__(self, ranking: Ranking, k: int) -> float:
        """Its value, finite; k is the cut-off, or the largest of them for a metric without."""
        raise NotImplementedError


# The tables of studies hold hit rate and NDCG, and the best epoch is chosen by the hit rate.
METRICS: Registry[Metric] = Registry("metric", Metric, __name__, flag="metrics", several=True, always=("hr", "ndcg"))
register = METRICS.register


@register("hr")
class HitRate(Metric):
    """Share of the users whose target is among the first k."""

    label = "HR"

    def __call__(self, ranking: Ranking, k: int) -> float:
        return float((ranking.ranks <= k).mean())


@register("ndcg")
class NDCG(Metric):
    """A single relevant item gains 1 / log2(rank + 1) inside the cut-off."""

    label = "NDCG"

    def __call__(self, ranking: Ranking, k: int) -> float:
        gains = 1 / np.log2(ranking.ranks + 1)
        return float((gains * (ranking.ranks <= k)).mean())


@register("mrr")
class MRR(Metric):
    """Mean of 1 / rank."""

    label = "MRR"
    has_cutoff = False

    def __call__(self, ranking: Ranking, k: int) -> float:
        return float((1 / ranking.ranks).mean())


PAPERS = (HitRate(), NDCG(), MRR())


def summarise(ranking: Ranking, cutoffs: Sequence[int], metrics: Sequence[Metric] = PAPERS) -> dict[str, float]:
    """Values by name: of metrics with a cut-off LABEL@k for each k, then of the others.

    Raises TransrecError for a value that is no finite number, and for two of one name.
    """
    values: dict[str, float] = {}
    wanted = [(f"{metric.label}@{k}", metric, k) for k in cutoffs for metric in metrics if metric.has_cutoff]
    wanted += [(metric.label, metric, max(cutoffs)) for metric in metrics if not metric.has_cutoff]
    for name, metric, k in wanted:
        value = metric(ranking, k)
        if name in values:
            raise TransrecError(f"--metrics: two of them give {name}, {type(metric).__name__} for one; leave one out")
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise TransrecError(f"--metrics: {type(metric).__name__} gives {name} {value!r}, which is no finite number")
        values[name] = value
    return values
