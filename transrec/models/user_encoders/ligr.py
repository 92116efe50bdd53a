"""Pre-LN self-attention with gated residuals: `ligr` (docs/protocol.md)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transrec.models.user_encoders.base import UserEncoder, register, xavier
from transrec.models.user_encoders.sasrec import (
    LAYER_NORM_EPS,
    SASRecOptions,
    SelfAttention,
    added_mask,
    check_heads,
)


class GatedResidual(nn.Module):
    """The end of a sub-layer: residual + sigmoid(Linear(residual)) * dropout(Linear(x))."""

    def __init__(self, inner: int, width: int, dropout: float):
        super().__init__()
        self.dense = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)
        self.residual_gate = nn.Linear(width, width)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return residual + torch.sigmoid(self.residual_gate(residual)) * self.dropout(self.dense(x))


class LiGRBlock(nn.Module):
    """Pre-LN transformer block: attention, then a SwiGLU feed-forward d -> 4d -> d without biases in front."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attention = SelfAttention(width, heads, dropout)
        self.attention_output = GatedResidual(width, width, dropout)
        self.feed_forward_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.gate = nn.Linear(width, 4 * width, bias=False)
        self.feed_forward_output = GatedResidual(4 * width, width, dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, L, d], mask as in SelfAttention -> [B, L, d]."""
        x = self.attention_output(self.attention(self.attention_norm(x), mask), x)
        inner = self.feed_forward_norm(x)
        return self.feed_forward_output(F.silu(self.gate(inner)) * self.up(inner), x)


@register("ligr")
class LiGR(UserEncoder):
    """The user encoder of eSASRec (Tikhonovich et al., RecSys 2025), of LiGR's blocks (Borisyuk et al., 2025).

    Our reading: learned positions are added to item embeddings, then dropout; in a block each sub-layer F gives
    x + sigmoid(W x + b) * F(LayerNorm(x)), where the gate reads the residual stream as it is; the feed-forward
    sub-layer is a SwiGLU; a LayerNorm ends the stack, as pre-LN stacks need one. Projections of queries, keys
    and values have no biases, as those of SASRec here. The program that its authors published (RecTools) has these
    biases and no LayerNorm at the end; in all else the blocks are equal.

    Args:
        width: d, the size of item embeddings and user vectors.
        max_seq_len: L, the number of learned positions.
        blocks, heads, dropout: of the transformer.

    Raises TransrecError when `heads` does not divide `width`.
    """

    Options = SASRecOptions
    sizes = ("blocks", "heads")

    def __init__(self, width: int, max_seq_len: int, blocks: int, heads: int, dropout: float):
        super().__init__(width)
        check_heads(width, heads)
        self.position_embedding = nn.Embedding(max_seq_len, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(LiGRBlock(width, heads, dropout) for _ in range(blocks))
        self.layer_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        xavier(self)

    def forward(self, item_embeddings: Tensor, mask: Tensor) -> Tensor:
        added = added_mask(mask)
        x = self.dropout(item_embeddings + self.position_embedding.weight[: mask.shape[1]])
        for block in self.blocks:
            x = block(x, added)
        return self.layer_norm(x)
