"""Base class and registry of user encoders."""

from typing import ClassVar

from torch import Tensor, nn

from transrec.options import Options
from transrec.registry import Registry


class UserEncoder(nn.Module):
    """Base class of all user encoders.

    The constructor takes (width, max_seq_len), and the values of the encoder's flags as keyword arguments. If the
    encoder is a stack of transformer blocks that `transrec.models.backbone.view` finds, methods can insert modules into
    it. Other encoders work with methods that insert nothing into the user encoder, and with --insert item.

    Attributes:
        Options: the dataclass of the encoder's flags.
        sizes: names of the flags that determine what the weights mean; a checkpoint loads only if they are equal.
        width: d, the size of item embeddings and user vectors.
    """

    Options: type[Options] = Options
    sizes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, item_embeddings: Tensor, mask: Tensor) -> Tensor:
        """Return the user vectors after each position.

        Args:
            item_embeddings: [B, L, d], left-padded.
            mask: [B, L], true (or non-zero) at real items.

        Returns:
            [B, L, d]; position t has seen only items 0..t, and no padding.
        """
        raise NotImplementedError


def xavier(module: nn.Module) -> None:
    """Draw the weights of all linear layers and embeddings in `module` Xavier-normal, and set biases to zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.xavier_normal_(part.weight)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


USER_ENCODERS: Registry[UserEncoder] = Registry("user encoder", UserEncoder, __package__)
register = USER_ENCODERS.register
