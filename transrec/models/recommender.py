"""The recommender: item encoder, user encoder and objective."""

from typing import Any

from torch import Tensor, nn

from transrec.data.batches import Batch
from transrec.models.objectives import Objective
from transrec.models.user_encoders import UserEncoder


class Recommender(nn.Module):
    """Encodes items, encodes users from their items, and scores items for users by inner product.

    Attributes:
        item_encoder: maps the content or numbers of N items to [N, d].
        user_encoder: maps ([B, L, d], mask [B, L]) to [B, L, d].
        objective: one of `transrec.models.objectives`.
        method: the method that was applied (transrec.methods); None before.
        saved_buffers: names of the buffers that the method added, which training changes.
    """

    def __init__(self, item_encoder: nn.Module, user_encoder: UserEncoder, objective: Objective):
        super().__init__()
        self.item_encoder = item_encoder
        self.user_encoder = user_encoder
        self.objective = objective
        self.method: Any = None
        self.saved_buffers: list[str] = []

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss, a scalar summed over the predicting positions; each distinct item is encoded once."""
        return self.objective(batch.inputs.encoded(self.item_encoder), batch, self.user_encoder) * batch.weight
