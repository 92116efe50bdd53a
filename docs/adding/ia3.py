"""IA3: learned scales of keys, values and feed-forward activations (`ia3`; Liu et al., NeurIPS 2022).

python adapter_houlsby.py --plugin docs/adding/ia3.py --method ia3 ...
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from transrec.methods import InsertOptions, Method, Place, plain_linear, register
from transrec.options import flag


class ScaledOutput(nn.Module):
    """Computes scale * inner(x); the scale starts at one."""

    def __init__(self, inner: nn.Linear):
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.ones(inner.out_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.scale

    def merge(self) -> nn.Linear:
        """Return a linear layer that computes the same."""
        bias = self.inner.bias
        return plain_linear(self.scale.unsqueeze(1) * self.inner.weight, None if bias is None else self.scale * bias)


class ScaledInput(nn.Module):
    """Computes inner(scale * x); the scale starts at one."""

    def __init__(self, inner: nn.Linear):
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.ones(inner.in_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * self.scale)

    def merge(self) -> nn.Linear:
        """Return a linear layer that computes the same."""
        return plain_linear(self.inner.weight * self.scale, self.inner.bias)


@dataclass(frozen=True)
class IA3Options(InsertOptions):
    adapter_lr: float = flag(1e-3, "Learning rate of the scales.")


@register("ia3")
class IA3(Method):
    """Adds three learned vectors to each block."""

    Options = IA3Options
    tokenwise = True

    def insert(self, place: Place, options: IA3Options) -> list[nn.Parameter]:
        scales = []
        for block in place.blocks:
            sites = [
                (block.key, ScaledOutput),
                (block.value, ScaledOutput),
                (block.feed_forward.projection, ScaledInput),
            ]
            for site, kind in sites:
                site.replace(kind(site.module))
                scales.append(site.module.scale)
        return scales
