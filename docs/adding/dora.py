"""DoRA: weights split into magnitude and direction, the direction updated by LoRA (Liu et al., ICML 2024).

An example of a method with a layer that can be merged into the weight that it replaces: the layer has `merge`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transrec.methods import ROUNDING, InsertOptions, Method, Place, plain_linear, register
from transrec.options import flag


class MagnitudeDirection(nn.Module):
    """Computes m V / |V| x + b with V = W + scaling B A (equation 5); m [out] starts as |W| and B as zero.

    |V| [out] is the norm of each output's row, as in the authors' program and in peft. |V| is treated as a constant in
    the backward pass (section 4.3), which saves memory.
    """

    def __init__(self, inner: nn.Linear, rank: int, scaling: float):
        super().__init__()
        self.inner = inner
        self.scaling = scaling
        self.magnitude = nn.Parameter(inner.weight.detach().norm(dim=1))
        self.down = nn.Parameter(torch.empty(rank, inner.in_features))
        self.up = nn.Parameter(torch.zeros(inner.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: [..., in] -> [..., out]."""
        # In mixed precision, the norm of rounded weights would be off by more than a training step changes it.
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            norm = self._direction().norm(dim=1)
        y = F.linear(x, self.inner.weight) + self.scaling * F.linear(F.linear(x, self.down), self.up)
        y = y * (self.magnitude / norm)
        return y if self.inner.bias is None else y + self.inner.bias

    def _direction(self) -> Tensor:
        return self.inner.weight + self.scaling * self.up @ self.down

    def merge(self) -> nn.Linear:
        """Return a linear layer that computes the same."""
        direction = self._direction()
        scale = self.magnitude / direction.norm(dim=1)
        return plain_linear(scale.unsqueeze(1) * direction, self.inner.bias)


@dataclass(frozen=True)
class DoRAOptions(InsertOptions):
    _minimum: ClassVar[dict[str, float]] = {"item_rank": 1, "user_rank": 1, "scaling": 0}

    adapter_lr: float = flag(1e-3, "Learning rate of the magnitudes and of the low-rank updates of the directions.")
    item_rank: int = flag(12, "Rank of the updates in the item encoder.")
    user_rank: int = flag(4, "Rank of the updates in the user encoder.")
    scaling: float = flag(1.0, "Factor by which B A is multiplied.")


@register("dora")
class DoRA(Method):
    """Replaces the query and value projections of each block."""

    Options = DoRAOptions
    tokenwise = True
    # At insertion m / |V| is 1, but the bias is added separately.
    changes_at_insertion = ROUNDING

    def insert(self, place: Place, options: DoRAOptions) -> list[nn.Parameter]:
        rank = options.item_rank if place.tower == "item" else options.user_rank
        trained = []
        for block in place.blocks:
            for site in (block.query, block.value):
                layer = MagnitudeDirection(site.module, rank, options.scaling)
                site.replace(layer)
                trained += [layer.magnitude, layer.down, layer.up]
        return trained
