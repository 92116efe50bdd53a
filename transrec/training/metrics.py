"""Metrics by name: accuracy, from each target's rank, and properties of the recommended lists (docs/protocol.md)."""

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
    """A model's ranking of all items for U users.

    Attributes:
        ranks: float64 [U], the rank of each user's target among all items, 1 is best; infinity if the target cannot be
            ranked, which counts as a miss.
        lists: int32 [U, K], each user's items with the highest scores, numbered 1..n, best first, ties in order of item
            number; K is the largest cut-off, at most n. 0 in places for which no item is left to recommend. None unless
            a metric asks for lists.
        item_count: number of items n.
        train_counts: int64 [n], how often each item occurs in training. None unless a metric asks for lists.
        embeddings: float32 [n, d], the item embeddings. None unless a metric asks for them.
        margins: float32 [U], each target's score minus the highest score of the other unmasked items; minus infinity
            if the target is masked, infinity if all other items are masked. None if no scores are known.
    """

    ranks: np.ndarray
    lists: np.ndarray | None = None
    item_count: int = 0
    train_counts: np.ndarray | None = None
    embeddings: np.ndarray | None = None
    margins: np.ndarray | None = None

    def only(self, chosen: np.ndarray) -> "Ranking":
        """Return the ranking restricted to the users that the mask `chosen`, bool [U], selects."""
        of_users = {name: getattr(self, name) for name in ("ranks", "lists", "margins")}
        return replace(self, **{name: None if values is None else values[chosen] for name, values in of_users.items()})


class Metric:
    """Base class of all metrics. The constructor takes the values of the metric's flags as keyword arguments.

    Attributes:
        Options: the dataclass of the metric's flags.
        label: name of the metric in results; LABEL@k if it has a cut-off.
        has_cutoff: whether the metric has one value for each k of --cutoffs.
        needs_lists: whether the metric reads `Ranking.lists` or `Ranking.train_counts`.
        needs_embeddings: whether the metric reads `Ranking.embeddings`.
        higher_is_better: whether the metric can select the best epoch, which is the one with the highest value.
    """

    Options: type[Options] = Options
    label: ClassVar[str]
    has_cutoff: ClassVar[bool] = True
    needs_lists: ClassVar[bool] = False
    needs_embeddings: ClassVar[bool] = False
    higher_is_better: ClassVar[bool] = True

    def __call__(self, ranking: Ranking, k: int) -> float:
        """Return the metric's value, which must be finite.

        k is the cut-off, or the largest of --cutoffs for a metric without a cut-off.
        """
        raise NotImplementedError

    def named(self, k: int) -> str:
        """Return the name of the metric's value at cut-off k."""
        return f"{self.label}@{k}" if self.has_cutoff else self.label


# Number of lists whose embeddings are in memory at the same time.
LISTS_AT_ONCE = 4096
# Hit rate and NDCG are always computed: the tables of studies show both, and the hit rate selects the best epoch.
METRICS: Registry[Metric] = Registry("metric", Metric, __name__, flag="metrics", several=True, always=("hr", "ndcg"))
register = METRICS.register


class RankMetric(Metric):
    """Base class of metrics that are means over targets of a function of the target's rank."""

    def per_target(self, ranks: np.ndarray, k: int) -> np.ndarray:
        """Return the value for each target, float64 [U], given ranks float64 [U], where infinity is a miss."""
        raise NotImplementedError

    def __call__(self, ranking: Ranking, k: int) -> float:
        return float(self.per_target(ranking.ranks, k).mean())


@register("hr")
class HitRate(RankMetric):
    """Share of users whose target is among the first k items."""

    label = "HR"

    def per_target(self, ranks: np.ndarray, k: int) -> np.ndarray:
        return (ranks <= k).astype(np.float64)


@register("ndcg")
class NDCG(RankMetric):
    """Normalised discounted cumulative gain: 1 / log2(rank + 1) for the single relevant item within the cut-off."""

    label = "NDCG"

    def per_target(self, ranks: np.ndarray, k: int) -> np.ndarray:
        return 1 / np.log2(ranks + 1) * (ranks <= k)


@register("mrr")
class MRR(RankMetric):
    """Mean of 1 / rank."""

    label = "MRR"
    has_cutoff = False

    def per_target(self, ranks: np.ndarray, k: int) -> np.ndarray:
        return 1 / ranks


@register("recall")
class Recall(HitRate):
    """Share of the relevant items that are among the first k; with one relevant item per ranking, the hit rate."""

    label = "Recall"


@register("precision")
class Precision(RankMetric):
    """Share of the first k items that are relevant; with one relevant item per ranking, the hit rate / k."""

    label = "Precision"

    def per_target(self, ranks: np.ndarray, k: int) -> np.ndarray:
        return (ranks <= k) / k


@register("map")
class MAP(RankMetric):
    """Mean average precision within the cut-off; with one relevant item, 1 / rank, or 0 if the rank exceeds k."""

    label = "MAP"

    def per_target(self, ranks: np.ndarray, k: int) -> np.ndarray:
        return 1 / ranks * (ranks <= k)


@register("auc")
class AUC(Metric):
    """Share of the other n - 1 items that rank behind the target; a masked target ranks behind all of them."""

    label = "AUC"
    has_cutoff = False

    def __call__(self, ranking: Ranking, k: int) -> float:
        others = max(1, ranking.item_count - 1)
        return float((1 - (np.minimum(ranking.ranks, ranking.item_count) - 1) / others).mean())


class ListMetric(Metric):
    """Base class of metrics of the recommended lists, regardless of relevance."""

    needs_lists = True

    def recommended(self, ranking: Ranking, k: int) -> np.ndarray:
        """Return the first k items of all users, concatenated and numbered from 0: int64 [at most U k]."""
        assert ranking.lists is not None
        first = ranking.lists[:, :k]
        return first[first > 0].astype(np.int64) - 1


@register("coverage")
class Coverage(ListMetric):
    """Share of all items that are recommended to at least one user."""

    label = "Coverage"

    def __call__(self, ranking: Ranking, k: int) -> float:
        return len(np.unique(self.recommended(ranking, k))) / ranking.item_count


@register("gini")
class Gini(ListMetric):
    """Inequality of recommendations over items: 0 if all are recommended equally often, (n - 1) / n if only one is."""

    label = "Gini"
    higher_is_better = False

    def __call__(self, ranking: Ranking, k: int) -> float:
        counts = np.sort(np.bincount(self.recommended(ranking, k), minlength=ranking.item_count))
        n, places = len(counts), np.arange(1, len(counts) + 1)
        return float(((2 * places - n - 1) * counts).sum() / (n * max(1, counts.sum())))


@register("popularity")
class AveragePopularity(ListMetric):
    """Mean number of training interactions of the recommended items (ARP of Yin et al., VLDB 2012)."""

    label = "Popularity"
    higher_is_better = False

    def __call__(self, ranking: Ranking, k: int) -> float:
        assert ranking.train_counts is not None
        items = self.recommended(ranking, k)
        return float(ranking.train_counts[items].mean()) if len(items) else 0.0


@register("novelty")
class Novelty(ListMetric):
    """Mean over recommended items of -log2 of the item's share of training interactions (Zhou et al., PNAS 2010).

    Items without training interactions count as if they had one.
    """

    label = "Novelty"

    def __call__(self, ranking: Ranking, k: int) -> float:
        assert ranking.train_counts is not None
        counts, items = ranking.train_counts, self.recommended(ranking, k)
        information = -np.log2(np.maximum(counts, 1) / max(1, counts.sum()))
        return float(information[items].mean()) if len(items) else 0.0


@register("diversity")
class IntraListDiversity(ListMetric):
    """Mean over users of 1 - cosine similarity of the embeddings of item pairs in a list (Ziegler et al., WWW 2005)."""

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
            # Sum of the cosines over ordered pairs: the squared norm of the sum, minus each item with itself.
            cosines = (chosen.sum(1) ** 2).sum(1) - (chosen**2).sum((1, 2))
            several = lengths > 1
            pairs = lengths[several] * (lengths[several] - 1)
            total += float((1 - cosines[several] / pairs).sum())
            users += int(several.sum())
        return total / users if users else 0.0


# A standard normal variable lies between minus and plus this value with a probability of 95 %.
NORMAL_95 = 1.959964

PAPERS = (HitRate(), NDCG(), MRR())


def intervals(
    ranking: Ranking,
    owners: np.ndarray,
    drawn: int,
    users: int,
    cutoffs: Sequence[int],
    metrics: Sequence[Metric] = PAPERS,
) -> dict[str, tuple[float, float]]:
    """Return 95 % confidence intervals, by name, for the values of metrics over all users, given a sample of users.

    Only metrics that are means over targets have an interval. It uses the normal approximation for a random sample of
    users without replacement, with the targets of a user as one cluster (a linearised ratio of sums).

    Args:
        ranking: ranking of the targets of the sampled users.
        owners: int [T], the user of each target.
        drawn: number of users in the sample, including those without a target.
        users: number of users from which the sample was drawn.
    """
    _, rows = np.unique(owners, return_inverse=True)
    bounds = {}
    for name, metric, k in _named_metrics(cutoffs, metrics):
        if isinstance(metric, RankMetric):
            values = metric.per_target(ranking.ranks, k)
            mean = float(values.mean())
            of_users = np.bincount(rows, values - mean)
            variance = (1 - drawn / users) * drawn / max(drawn - 1, 1) * (of_users**2).sum() / len(values) ** 2
            half = NORMAL_95 * math.sqrt(variance)
            is_share = values.min() >= 0 and values.max() <= 1
            lowest, highest = (0.0, 1.0) if is_share else (-math.inf, math.inf)
            bounds[name] = (max(lowest, mean - half), min(highest, mean + half))
    return bounds


def _named_metrics(cutoffs: Sequence[int], metrics: Sequence[Metric]) -> list[tuple[str, Metric, int]]:
    """Return the name, metric and cut-off of each value."""
    pairs = [(metric, k) for k in cutoffs for metric in metrics if metric.has_cutoff]
    pairs += [(metric, max(cutoffs)) for metric in metrics if not metric.has_cutoff]
    return [(metric.named(k), metric, k) for metric, k in pairs]


def names_of(cutoffs: Sequence[int], metrics: Sequence[Metric]) -> list[str]:
    """Return the names of the values: LABEL@k of metrics with a cut-off for each k, then those of other metrics."""
    return [name for name, _, _ in _named_metrics(cutoffs, metrics)]


def summarise(ranking: Ranking, cutoffs: Sequence[int], metrics: Sequence[Metric] = PAPERS) -> dict[str, float]:
    """Return values by name: LABEL@k of metrics with a cut-off for each k, then those of other metrics.

    Raises TransrecError if a value is not a finite number or if two values have the same name.
    """
    values: dict[str, float] = {}
    for name, metric, k in _named_metrics(cutoffs, metrics):
        value = metric(ranking, k)
        if name in values:
            raise TransrecError(f"--metrics: two of them give {name}, {type(metric).__name__} for one; leave one out")
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise TransrecError(f"--metrics: {type(metric).__name__} gives {name} {value!r}, which is not finite")
        values[name] = value
    return values
