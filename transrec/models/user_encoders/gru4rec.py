"""A recurrent user encoder: `gru4rec` (Hidasi et al., ICLR 2016; docs/protocol.md)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from transrec.models.user_encoders.base import UserEncoder, register, xavier
from transrec.options import Options, flag


@dataclass(frozen=True)
class GRU4RecOptions(Options):
    _minimum: ClassVar[dict[str, float]] = {"gru_size": 1, "gru_layers": 1, "gru_dropout": 0}
    _below: ClassVar[dict[str, float]] = {"gru_dropout": 1}

    gru_size: int = flag(128, "Width of the recurrent state.")
    gru_layers: int = flag(1, "Number of recurrent layers.")
    gru_dropout: float = flag(0.1, "Dropout rate of the item embeddings that the first layer reads.")


@register("gru4rec")
class GRU4Rec(UserEncoder):
    """A GRU over the item embeddings, followed by a linear layer from the GRU's state back to the embedding width.

    It has no transformer blocks: methods that insert modules into blocks raise an error and need --insert item.
    """

    Options = GRU4RecOptions
    sizes = ("gru_size", "gru_layers")

    def __init__(self, width: int, max_seq_len: int, gru_size: int, gru_layers: int, gru_dropout: float):
        super().__init__(width)
        self.dropout = nn.Dropout(gru_dropout)
        self.gru = nn.GRU(width, gru_size, gru_layers, batch_first=True)
        self.projection = nn.Linear(gru_size, width)
        xavier(self)

    def forward(self, item_embeddings: Tensor, mask: Tensor) -> Tensor:
        # Move padding from the front to the back: a recurrent layer would read padding in front of the items.
        length = mask.shape[1]
        padding = length - mask.long().sum(1, keepdim=True)
        places = torch.arange(length, device=mask.device)
        to_front, to_back = ((places + shift) % length for shift in (padding, -padding))
        states, _ = self.gru(_rows_at(self.dropout(item_embeddings), to_front))
        return self.projection(_rows_at(states, to_back))


def _rows_at(rows: Tensor, places: Tensor) -> Tensor:
    """Return the rows [B, L, D] at `places` [B, L]."""
    return rows.gather(1, places.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))
