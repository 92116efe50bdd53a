"""Metrics by name: of accuracy, from each target's rank, and of what is recommended, from lists (docs/protocol.md)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
        lists: int32 [U, K], each user's items of the highest scores, numbered 1..n, best first, of equal ones the lower
            number first; K is the largest cut-off, or n. 0 where no item is left to recommend. None unless a metric
            asks for them.
        item_count: n.
        train_counts: int64 [n], how often each item occurs in training. None unless a metric asks for lists.
        embeddings: float32 [n, d] of the items. None unless a metric asks for them.
        margins: float32 [U], each target's score less the highest of the others that are not masked; minus infinity
            where the target is masked, infinity where all others are. None where no scores are known.
    """

    ranks: np.ndarray
    lists: np.ndarray | None = None
    item_count: int = 0
    train_counts: np.ndarray | None = None
    embeddings: np.ndarray | None = None
    margins: np.ndarray | None = None

    def only(self, chosen: np.ndarray) -> "Ranking":
        """That of some of the users: bool [U]."""
        of_users = {name: getattr(self, name) for name in ("ranks", "lists", "margins")}
        return replace(self, **{name: None if of is None else of[chosen] for name, of in of_users.items()})


class Metric:
    """Base of all metrics, made of the values of its flags by their names.

    Attributes:
        Options: the dataclass of its flags.
        label: what it is called in results; one with a cut-off LABEL@k.
        has_cutoff: whether there is one value for each k of --cutoffs.
        needs_lists: whether it reads `Ranking.lists` or `Ranking.train_counts`.
        needs_embeddings: whether it reads `Ranking.embeddings`.
    """

    Options: type[Options] = Options
    label: ClassVar[str]
    has_cutoff: ClassVar[bool] = True
    needs_lists: ClassVar[bool] = False
    needs_embeddings: ClassVar[bool] = False

    def __call__(self, ranking: Ranking, k: int) -> float:
        """Its value, finite; k is the cut-off, or the largest of them for a metric without."""
        raise NotImplementedError

    def named(self, k: int) -> str:
        """What its value at a cut-off is called."""
        return f"{self.label}@{k}" if self.has_cutoff else self.label


# Lists whose embeddings are in memory at a time.
LISTS_AT_ONCE = 4096
# The tables of studies hold hit rate and NDCG, and the best epoch is chosen by the hit rate.
METRICS: Registry[Metric] = Registry("metric", Metric, __name__, flag="metrics", several=True, always=("hr", "ndcg"))
register = METRICS.register


class RankMetric(Metric):
    """Base of metrics that are the mean over targets of a value that each target's rank gives."""

    def of_each(self, ranks: np.ndarray, k: int) -> np.ndarray:
        """Its value for each target: float64 [U] of ranks float64 [U], of which infinity is a miss."""
        raise NotImplementedError

    def __call__(self, ranking: Ranking, k: int) -> float:
        return float(self.of_each(ranking.ranks, k).mean())


@register("hr")
class HitRate(RankMetric):
    """Share of the users whose target is among the first k."""

    label = "HR"

    def of_each(self, ranks: np.ndarray, k: int) -> np.ndarray:
        return (ranks <= k).astype(np.float64)


@register("ndcg")
class NDCG(RankMetric):
    """A single relevant item gains 1 / log2(rank + 1) inside the cut-off."""

    label = "NDCG"

    def of_each(self, ranks: np.ndarray, k: int) -> np.ndarray:
        return 1 / np.log2(ranks + 1) * (ranks <= k)


@register("mrr")
class MRR(RankMetric):
    """Mean of 1 / rank."""

    label = "MRR"
    has_cutoff = False

    def of_each(self, ranks: np.ndarray, k: int) -> np.ndarray:
        return 1 / ranks


@register("recall")
class Recall(HitRate):
    """Share of the relevant items among the first k: of one relevant item per ranking, the hit rate."""

    label = "Recall"


@register("precision")
class Precision(RankMetric):
    """Share of the first k that are relevant: of one relevant item, the hit rate / k."""

    label = "Precision"

    def of_each(self, ranks: np.ndarray, k: int) -> np.ndarray:
        return (ranks <= k) / k


@register("map")
class MAP(RankMetric):
    """Mean average precision inside the cut-off: of one relevant item 1 / rank, or 0 behind k."""

    label = "MAP"

    def of_each(self, ranks: np.ndarray, k: int) -> np.ndarray:
        return 1 / ranks * (ranks <= k)


@register("auc")
class AUC(Metric):
    """Share of the other items that are ranked behind the target, over all n items; a masked target is behind all."""

    label = "AUC"
    has_cutoff = False

    def __call__(self, ranking: Ranking, k: int) -> float:
        others = max(1, ranking.item_count - 1)
        return float((1 - (np.minimum(ranking.ranks, ranking.item_count) - 1) / others).mean())


class ListMetric(Metric):
    """Base of metrics of what is recommended, whether it is relevant or not."""

    needs_lists = True

    def recommended(self, ranking: Ranking, k: int) -> np.ndarray:
        """The items among the first k of all users, one after the other, counted from 0: int64 [at most U k]."""
        assert ranking.lists is not None
        first = ranking.lists[:, :k]
        return first[first > 0].astype(np.int64) - 1


@register("coverage")
class Coverage(ListMetric):
    """Share of all items that are recommended to anyone."""

    label = "Coverage"

    def __call__(self, ranking: Ranking, k: int) -> float:
        return len(np.unique(self.recommended(ranking, k))) / ranking.item_count


@register("gini")
class Gini(ListMetric):
    """How unevenly recommendations fall on items: 0 where all are recommended alike, (n - 1) / n where one alone is."""

    label = "Gini"

    def __call__(self, ranking: Ranking, k: int) -> float:
        counts = np.sort(np.bincount(self.recommended(ranking, k), minlength=ranking.item_count))
        n, places = len(counts), np.arange(1, len(counts) + 1)
        return float(((2 * places - n - 1) * counts).sum() / (n * max(1, counts.sum())))


@register("popularity")
class AveragePopularity(ListMetric):
    """Mean number of training interactions of the recommended items (ARP of Yin et al., VLDB 2012)."""

    label = "Popularity"

    def __call__(self, ranking: Ranking, k: int) -> float:
        assert ranking.train_counts is not None
        items = self.recommended(ranking, k)
        return float(ranking.train_counts[items].mean()) if len(items) else 0.0


@register("novelty")
class Novelty(ListMetric):
    """Mean of -log2 of the share of training interactions that the recommended items have (Zhou et al., PNAS 2010).

    Items without any count as if they had one.
    """

    label = "Novelty"

    def __call__(self, ranking: Ranking, k: int) -> float:
        assert ranking.train_counts is not None
        counts, items = ranking.train_counts, self.recommended(ranking, k)
        information = -np.log2(np.maximum(counts, 1) / max(1, counts.sum()))
        return float(information[items].mean()) if len(items) else 0.0


@register("diversity")
class IntraListDiversity(ListMetric):
    """Mean over users of 1 - cosine between the embeddings of two items of a list (Ziegler et al., WWW 2005)."""

    label = "Diversity"
    needs_embeddings = True

    def __call__(self, ranking: Ranking, k: int) -> float:
        assert ranking.lists is not None and ranking.embeddings is not None
        norms = np.linalg.norm(ranking.embeddings, axis=1, keepdims=True)
        directions = ranking.embeddings / np.maximum(norms, 1e-12)
        total, users = 0.0, 0
        for start in range(0, len(ranking.lists), LISTS_AT_ONCE):
            first = ranking.lists[start : start + LISTS_AT_ONCE, :k]
            real = first > 0
            lengths = real.sum(1)
            chosen = directions[np.maximum(first - 1, 0)] * real[..., None]
            # The sum of the cosines of all pairs, and of each item with itself.
            cosines = (chosen.sum(1) ** 2).sum(1) - (chosen**2).sum((1, 2))
            several = lengths > 1
            pairs = lengths[several] * (lengths[several] - 1)
            total += float((1 - cosines[several] / pairs).sum())
            users += int(several.sum())
        return total / users if users else 0.0


# A standard normal lies within this of 0 with a probability of 95 %.
NORMAL_95 = 1.959964

PAPERS = (HitRate(), NDCG(), MRR())


def intervals(
    ranking: Ranking, owners: np.ndarray, users: int, cutoffs: Sequence[int], metrics: Sequence[Metric] = PAPERS
) -> dict[str, tuple[float, float]]:
    """95 % intervals for the values that all users would give, by name, of the metrics that are means over targets.

    By the normal approximation for a random sample of users without replacement, whose targets stand or fall together
    (a ratio of sums, linearised).

    Args:
        ranking: of the targets of the users of the sample.
        owners: int [T], the user of each target.
        users: how many there are to draw from.
    """
    _, rows = np.unique(owners, return_inverse=True)
    drawn = rows.max() + 1
    found = {}
    for name, metric, k in _wanted(cutoffs, metrics):
        if isinstance(metric, RankMetric):
            values = metric.of_each(ranking.ranks, k)
            mean = float(values.mean())
            of_users = np.bincount(rows, values - mean)
            variance = (1 - drawn / users) * drawn / max(drawn - 1, 1) * (of_users**2).sum() / len(values) ** 2
            half = NORMAL_95 * math.sqrt(variance)
            found[name] = (max(0.0, mean - half), min(1.0, mean + half))
    return found


def _wanted(cutoffs: Sequence[int], metrics: Sequence[Metric]) -> list[tuple[str, Metric, int]]:
    """Name, metric and cut-off of each value."""
    wanted = [(metric, k) for k in cutoffs for metric in metrics if metric.has_cutoff]
    wanted += [(metric, max(cutoffs)) for metric in metrics if not metric.has_cutoff]
    return [(metric.named(k), metric, k) for metric, k in wanted]


def names_of(cutoffs: Sequence[int], metrics: Sequence[Metric]) -> list[str]:
    """What values are called: of metrics with a cut-off LABEL@k for each k, then of the others."""
    return [name for name, _, _ in _wanted(cutoffs, metrics)]


def summarise(ranking: Ranking, cutoffs: Sequence[int], metrics: Sequence[Metric] = PAPERS) -> dict[str, float]:
    """Values by name: of metrics with a cut-off LABEL@k for each k, then of the others.

    Raises TransrecError for a value that is no finite number, and for two of one name.
    """
    values: dict[str, float] = {}
    for name, metric, k in _wanted(cutoffs, metrics):
        value = metric(ranking, k)
        if name in values:
            raise TransrecError(f"--metrics: two of them give {name}, {type(metric).__name__} for one; leave one out")
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise TransrecError(f"--metrics: {type(metric).__name__} gives {name} {value!r}, which is no finite number")
        values[name] = value
    return values
