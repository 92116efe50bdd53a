"""Hinge loss: a target must outscore each negative by a margin (`margin`).

    python finetune.py --plugin docs/adding/margin.py --objective margin --negatives 8 --margin 0.5 ...

Only hard negatives contribute: a negative that the target already outscores by the margin adds nothing to the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from transrec.data.batches import Batch
from transrec.models.objectives import Objective, pair_scores, register
from transrec.options import Options, flag


@dataclass(frozen=True)
class MarginOptions(Options):
    _minimum: ClassVar[dict[str, float]] = {"negatives": 1, "margin": 0}

    negatives: int = flag(8, "K, the number of sampled negatives per position; each is one more item to encode.")
    margin: float = flag(1.0, "Amount by which a target must outscore each negative.")


@register("margin")
class Margin(Objective):
    """Loss of a position with K random negatives: the mean of max(0, margin - <h, e> + <h, e_negative>)."""

    Options = MarginOptions

    def __init__(self, negatives: int = 8, margin: float = 1.0):
        self.negatives, self.margin = negatives, margin

    def __call__(self, embeddings: Tensor, batch: Batch, user_encoder: Callable) -> Tensor:
        # Scores [B, L] of targets and [B, L, K] of negatives.
        targets, negatives = pair_scores(embeddings, batch, user_encoder)
        losses = (self.margin - targets.unsqueeze(-1) + negatives).relu().mean(-1)
        return (losses * batch.mask).sum()
