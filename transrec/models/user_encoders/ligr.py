"""Pre-LN self-attention with gated residuals: `ligr` (docs/protocol.md)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transrec.models.user_encoders.base import UserEncoder, register, xavier
from transrec.models.user_encoders.sasrec import (
    LAYER_NORM_EPS,
    SASRecOptions,
    SelfAttention,
    additive_mask,
    check_heads,
)


class GatedResidual(nn.Module):
    """End of a sub-layer: residual + sigmoid(Linear(residual)) * dropout(Linear(x))."""

    def __init__(self, inner: int, width: int, dropout: float):
        super().__init__()
        self.dense = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)
        self.residual_gate = nn.Linear(width, width)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return residual + torch.sigmoid(self.residual_gate(residual)) * self.dropout(self.dense(x))


class LiGRBlock(nn.Module):
    """Pre-LN transformer block: attention, then a SwiGLU feed-forward d -> 4d -> d, bias-free in its first layers."""

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
        """Return [B, L, d] for x [B, L, d] and a mask as in SelfAttention."""
        x = self.attention_output(self.attention(self.attention_norm(x), mask), x)
        inner = self.feed_forward_norm(x)
        return self.feed_forward_output(F.silu(self.gate(inner)) * self.up(inner), x)


@register("ligr")
class LiGR(UserEncoder):
    """The user encoder of eSASRec (Tikhonovich et al., RecSys 2025), with the blocks of LiGR (Borisyuk et al., 2025).

    Our interpretation: learned positions are added to the item embeddings, followed by dropout. In a block, each
    sub-layer F computes x + sigmoid(W x + b) * F(LayerNorm(x)), where the gate reads the residual stream without
    normalisation. The feed-forward sub-layer is a SwiGLU. A LayerNorm ends the stack, as pre-LN stacks need one. Query,
    key and value projections have no biases, as in our SASRec. The program that the authors published (RecTools) has
    these biases and no final LayerNorm; apart from that, the blocks are equal.

    Args:
        width: d, the size of item embeddings and user vectors.
        max_seq_len: L, the number of learned positions.
        blocks, heads, dropout: number of blocks, attention heads per block, and dropout rate of the transformer.

    Raises TransrecError if `heads` does not divide `width`.
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
        attention_mask = additive_mask(mask)
        x = self.dropout(item_embeddings + self.position_embedding.weight[: mask.shape[1]])
        for block in self.blocks:
            x = block(x, attention_mask)
        return self.layer_norm(x)
