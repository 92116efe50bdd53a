"""Binary cross-entropy at the last position: `cpc` (Adapter4Rec; docs/protocol.md)."""

from collections.abc import Callable

from torch import Tensor

from transrec.data.batches import Batch
from transrec.models.objectives.base import Objective, binary_cross_entropy, lookup_embeddings, register, user_vectors


@register("cpc")
class CPCObjective(Objective):
    """Like BCEObjective with one negative, but only the last position predicts, namely the last item (Adapter4Rec)."""

    negatives = 1
    last_only = True

    def __call__(self, embeddings: Tensor, batch: Batch, user_encoder: Callable) -> Tensor:
        users, targets = user_vectors(embeddings, batch, user_encoder)
        negatives = lookup_embeddings(embeddings, batch.negatives[:, -1])
        users, mask = users[:, -1], batch.mask[:, -1]
        positive, negative = ((users * items).sum(-1).float() for items in (targets[:, -1], negatives))
        return (binary_cross_entropy(positive, 1.0) * mask).sum() + (binary_cross_entropy(negative, 0.0) * mask).sum()
