"""What a user encoder is."""

from typing import ClassVar

from torch import Tensor, nn

from transrec.options import Options
from transrec.registry import Registry


class UserEncoder(nn.Module):
    """Base of all user encoders, made of (width, max_seq_len) and the values of its flags by their names.

    Where it is a stack of transformer blocks, as `transrec.models.backbone.view` finds one, methods can insert modules
    into it; others work with the methods that leave it alone, and with --insert item.

    Attributes:
        Options: the dataclass of its flags.
        sizes: those of the flags that decide what its weights mean: a checkpoint is read only where they are equal.
        width: d, the size of item embeddings and user vectors.
    """

    Options: type[Options] = Options
    sizes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, item_embeddings: Tensor, mask: Tensor) -> Tensor:
        """User vectors after each position.

        Args:
            item_embeddings: [B, L, d], left-padded.
            mask: [B, L], true (or non-zero) where an item is real.

        Returns:
            [B, L, d]; position t has seen items 0..t only, and no padding.
        """
        raise NotImplementedError


def xavier(module: nn.Module) -> None:
    """Draw the weights of all linear layers and embeddings inside Xavier-normal, and set biases to zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.xavier_normal_(part.weight)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


USER_ENCODERS: Registry[UserEncoder] = Registry("user encoder", UserEncoder, __package__)
register = USER_ENCODERS.register
