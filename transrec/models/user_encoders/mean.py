"""Mean of the items so far: `mean`, the floor for all user encoders (docs/protocol.md)."""

from torch import Tensor

from transrec.models.user_encoders.base import UserEncoder, register


@register("mean")
class Mean(UserEncoder):
    """Represents a user by the mean of the items up to each position, regardless of order. Nothing is learned.

    It has no transformer blocks: methods that insert modules into blocks raise an error and need --insert item.
    """

    def __init__(self, width: int, max_seq_len: int):
        super().__init__(width)

    def forward(self, item_embeddings: Tensor, mask: Tensor) -> Tensor:
        real = mask.unsqueeze(-1).to(item_embeddings.dtype)
        # Padding may hold any value, including infinity.
        sums = item_embeddings.masked_fill(real == 0, 0.0).cumsum(1)
        return sums / real.cumsum(1).clamp(min=1)
