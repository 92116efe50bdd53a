"""Recall@k, from ranks, and coverage@k, from the lists of recommended items (`recall`, `coverage`).

python finetune.py --plugin docs/adding/metrics.py --metrics hr ndcg mrr recall coverage ...
"""

import numpy as np

from transrec.training.metrics import Metric, Ranking, register


@register("recall")
class Recall(Metric):
    """Share of a user's relevant items among the first k; with one relevant item per user that is the hit rate."""

    label = "Recall"

    def __call__(self, ranking: Ranking, k: int) -> float:
        return float(np.mean(ranking.ranks <= k))


@register("coverage")
class Coverage(Metric):
    """Share of all items that are recommended to anyone among the first k."""

    label = "Coverage"
    needs_lists = True

    def __call__(self, ranking: Ranking, k: int) -> float:
        recommended = np.unique(ranking.lists[:, :k])
        return int((recommended > 0).sum()) / ranking.item_count
