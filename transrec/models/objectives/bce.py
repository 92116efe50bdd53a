"""Binary cross-entropy at every position: `bce`, formerly `sasrec` (Adapter4Rec; docs/protocol.md)."""

from collections.abc import Callable

from torch import Tensor

from transrec.data.batches import Batch
from transrec.models.objectives.base import NegativesOptions, Objective, binary_cross_entropy, pair_scores, register


@register("bce", "sasrec")
class BCEObjective(Objective):
    """K random negatives per position: BCE on <h_t, e_{t+1}> = 1 and each <h_t, e_neg> = 0 (Adapter4Rec)."""

    Options = NegativesOptions

    def __init__(self, negatives: int = 1):
        self.negatives = negatives

    def __call__(self, embeddings: Tensor, batch: Batch, user_encoder: Callable) -> Tensor:
        targets, negatives = pair_scores(embeddings, batch, user_encoder)
        return (binary_cross_entropy(targets, 1.0) * batch.mask).sum() + (
            binary_cross_entropy(negatives, 0.0) * batch.mask.unsqueeze(-1)
        ).sum()
