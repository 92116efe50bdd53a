"""Rank-biased precision, from ranks, and the share of the most recommended item, from lists (`rbp`, `top_share`).

python finetune.py --plugin docs/adding/metrics.py --metrics hr ndcg mrr rbp top_share --rbp_persistence 0.9 ...
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from transrec.options import Options, flag
from transrec.training.metrics import ListMetric, Ranking, RankMetric, register


@dataclass(frozen=True)
class RBPOptions(Options):
    _minimum: ClassVar[dict[str, float]] = {"rbp_persistence": 0}

    rbp_persistence: float = flag(
        0.8, "p of rank-biased precision: the probability that a user goes on to the next item."
    )


@register("rbp")
class RankBiasedPrecision(RankMetric):
    """Returns (1 - p) p^(rank - 1) up to the cut-off and 0 after it (Moffat and Zobel, TOIS 2008)."""

    Options = RBPOptions
    label = "RBP"

    def __init__(self, rbp_persistence: float):
        self.persistence = rbp_persistence

    def per_target(self, ranks: np.ndarray, k: int) -> np.ndarray:
        return (1 - self.persistence) * self.persistence ** (ranks - 1) * (ranks <= k)


@register("top_share")
class TopShare(ListMetric):
    """Share of all recommendations that go to the most recommended item."""

    label = "TopShare"

    def __call__(self, ranking: Ranking, k: int) -> float:
        items = self.recommended(ranking, k)
        return float(np.bincount(items).max() / len(items)) if len(items) else 0.0
