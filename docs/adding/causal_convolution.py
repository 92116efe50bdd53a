"""Dilated causal convolutions over the sequence, after NextItNet (Yuan et al., WSDM 2019; `causal_convolution`).

    python finetune.py --plugin docs/adding/causal_convolution.py --user_encoder causal_convolution --kernel 3 ...

It has no transformer blocks, so methods that insert into blocks report an error unless they are given --insert item.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from transrec.models.user_encoders import UserEncoder, register
from transrec.options import Options, flag


@dataclass(frozen=True)
class ConvolutionOptions(Options):
    _minimum: ClassVar[dict[str, float]] = {"kernel": 2, "dilations": 1}

    kernel: int = flag(3, "Number of positions that a convolution sees, the last of which is its own.")
    dilations: list[int] = flag([1, 2, 4], "Distance between these positions, for each residual layer.")


@register("causal_convolution")
class CausalConvolution(UserEncoder):
    """Applies x <- x + ReLU(LayerNorm(convolution of x)) for each dilation."""

    Options = ConvolutionOptions
    sizes = ("kernel", "dilations")

    def __init__(self, width: int, max_seq_len: int, kernel: int, dilations: list[int]):
        super().__init__(width)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, kernel, dilation=step) for step in dilations)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in dilations)

    def forward(self, item_embeddings: Tensor, mask: Tensor) -> Tensor:
        padding = ~mask.bool().unsqueeze(-1)
        x = item_embeddings.masked_fill(padding, 0.0)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            before = convolution.dilation[0] * (convolution.kernel_size[0] - 1)
            read = convolution(F.pad(x.transpose(1, 2), (before, 0))).transpose(1, 2)
            # Positions before the first item must be zero for the next layer too.
            x = (x + norm(read).relu()).masked_fill(padding, 0.0)
        return x
