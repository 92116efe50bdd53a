"""SASRec: self-attention over the sequence, `sasrec` (docs/protocol.md)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transrec.errors import TransrecError
from transrec.models.user_encoders.base import UserEncoder, register, xavier
from transrec.options import Options, flag

LAYER_NORM_EPS = 1e-6
# Added to the logits of positions that must not be attended to. It is finite, so that a query that may attend to
# nothing averages over everything instead of giving NaN.
MASKED = -1e9


class SelfAttention(nn.Module):
    """Multi-head attention with bias-free projections; dropout on the attention probabilities."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.dropout = nn.Dropout(dropout)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return [B, L, d] for x [B, L, d] and a mask [B, 1, L, L] (query, key) that is added to the logits."""
        query, key, value = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        # Written out, because fused kernels compute a wrong gradient for a query that may attend to nothing, and they
        # save no time on sequences this short.
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + mask
        return (self.dropout(logits.softmax(-1)) @ value).transpose(1, 2).flatten(2)


class ResidualOutput(nn.Module):
    """End of a post-LN sub-layer: LayerNorm(residual + dropout(Linear(x)))."""

    def __init__(self, inner: int, width: int, bias: bool, dropout: float):
        super().__init__()
        self.dense = nn.Linear(inner, width, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.layer_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.layer_norm(residual + self.dropout(self.dense(x)))


class SASRecBlock(nn.Module):
    """Post-LN transformer block: attention, then feed-forward d -> 4d -> d with ReLU."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.attention = SelfAttention(width, heads, dropout)
        self.attention_output = ResidualOutput(width, width, bias=False, dropout=dropout)
        self.up = nn.Linear(width, 4 * width)
        self.feed_forward_output = ResidualOutput(4 * width, width, bias=True, dropout=dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return [B, L, d] for x [B, L, d] and a mask as in SelfAttention."""
        x = self.attention_output(self.attention(x, mask), x)
        return self.feed_forward_output(F.relu(self.up(x)), x)


@dataclass(frozen=True)
class SASRecOptions(Options):
    _minimum: ClassVar[dict[str, float]] = {"blocks": 1, "heads": 1, "dropout": 0}
    _below: ClassVar[dict[str, float]] = {"dropout": 1}

    blocks: int = flag(2, "Number of transformer blocks of the user encoder.")
    heads: int = flag(2, "Number of attention heads of the user encoder.")
    dropout: float = flag(0.1, "Dropout rate of the user encoder.")


def check_heads(width: int, heads: int) -> None:
    """Raise TransrecError if `heads` does not divide `width`."""
    if width % heads:
        raise TransrecError(f"--embedding_dim {width} cannot be divided among --heads {heads}; choose a divisor")


def additive_mask(mask: Tensor) -> Tensor:
    """Return the additive attention mask [B, 1, L, L] of a mask [B, L]: 0 for real items not after the query."""
    length = mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return torch.where(causal & mask.bool()[:, None, None, :], 0.0, MASKED)


@register("sasrec")
class SASRec(UserEncoder):
    """Self-attentive sequential recommendation over item embeddings.

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
        self.layer_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(SASRecBlock(width, heads, dropout) for _ in range(blocks))
        xavier(self)

    def forward(self, item_embeddings: Tensor, mask: Tensor) -> Tensor:
        """Return the user vectors after each position.

        Args:
            item_embeddings: [B, L, d], left-padded.
            mask: [B, L], true (or non-zero) at real items.

        Returns:
            [B, L, d]; position t has seen only items 0..t. Rows at padding are finite but meaningless.
        """
        attention_mask = additive_mask(mask)
        x = item_embeddings + self.position_embedding.weight[: item_embeddings.shape[1]]
        x = self.dropout(self.layer_norm(x))
        for block in self.blocks:
            x = block(x, attention_mask)
        return x
