"""Binary cross-entropy at every position: `sasrec` (Adapter4Rec; docs/protocol.md)."""

from collections.abc import Callable

from torch import Tensor

from transrec.data.batches import Batch
from transrec.models.objectives.base import Objective, contrast, register, take, user_vectors


@register("sasrec")
class SASRecObjective(Objective):
    """Each position against one random negative: BCE on <h_t, e_{t+1}> = 1 and <h_t, e_neg> = 0 (Adapter4Rec)."""

    negatives = 1

    def __call__(self, embeddings: Tensor, batch: Batch, user_encoder: Callable) -> Tensor:
        users, targets = user_vectors(embeddings, batch, user_encoder)
        return contrast(users, targets, take(embeddings, batch.negatives), batch.mask)
