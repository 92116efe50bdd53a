"""Binary cross-entropy at the last position: `cpc` (Adapter4Rec; docs/protocol.md)."""

from collections.abc import Callable

from torch import Tensor

from transrec.data.batches import Batch
from transrec.models.objectives.base import Objective, contrast, register, take, user_vectors


@register("cpc")
class CPCObjective(Objective):
    """As SASRecObjective, but only the last position predicts the last item (Adapter4Rec)."""

    negatives = 1
    last_only = True

    def __call__(self, embeddings: Tensor, batch: Batch, user_encoder: Callable) -> Tensor:
        users, targets = user_vectors(embeddings, batch, user_encoder)
        negatives = take(embeddings, batch.negatives[:, -1])
        return contrast(users[:, -1], targets[:, -1], negatives, batch.mask[:, -1])
