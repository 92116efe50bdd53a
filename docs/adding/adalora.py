"""AdaLoRA: low-rank updates that share a budget of ranks according to their importance (Zhang et al., ICLR 2023).

An example of a method with a penalty, a step of its own after each optimiser step, and state: buffers that are saved
in checkpoints and restored when a run is resumed.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transrec.errors import TransrecError
from transrec.methods import InsertOptions, Method, Place, plain_linear, register
from transrec.options import flag

INIT_STD = 0.02


class SingularLinear(nn.Module):
    """Computes W x + b + P diag(l) Q x (equation 3), with P [out, r], l [r] and Q [r, in]; l starts at zero.

    Entry i of l, column i of P and row i of Q form a triplet, which is kept or dropped as a unit.

    Attributes:
        kept: bool [r], the triplets within the budget when it was last allocated.
    """

    def __init__(self, inner: nn.Linear, rank: int):
        super().__init__()
        self.inner = inner
        self.left = nn.Parameter(INIT_STD * torch.randn(inner.out_features, rank))
        self.values = nn.Parameter(torch.zeros(rank))
        self.right = nn.Parameter(INIT_STD * torch.randn(rank, inner.in_features))
        self.register_buffer("kept", torch.ones(rank, dtype=torch.bool))
        for name in ("left", "values", "right"):
            # Running means of each entry's sensitivity, and of the variation of its sensitivity.
            self.register_buffer(f"{name}_sensitivity", torch.zeros_like(getattr(self, name)))
            self.register_buffer(f"{name}_uncertainty", torch.zeros_like(getattr(self, name)))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: [..., in] -> [..., out]."""
        return self.inner(x) + F.linear(F.linear(x, self.right) * self.values, self.left)

    def distance_from_orthogonal(self) -> Tensor:
        """Return |P^T P - I|^2 + |Q Q^T - I|^2, a scalar (equation 4)."""
        identity = torch.eye(len(self.values), device=self.values.device)
        left, right = self.left.T @ self.left - identity, self.right @ self.right.T - identity
        return left.square().sum() + right.square().sum()

    def observe(self, beta1: float, beta2: float) -> None:
        """Update the running means with the sensitivities |w dL/dw| of the step (equations 8 to 10)."""
        for name in ("left", "values", "right"):
            weight = getattr(self, name)
            mean, uncertainty = self.get_buffer(f"{name}_sensitivity"), self.get_buffer(f"{name}_uncertainty")
            sensitivity = (weight * weight.grad).abs()
            mean.mul_(beta1).add_(sensitivity, alpha=1 - beta1)
            uncertainty.mul_(beta2).add_((sensitivity - mean).abs(), alpha=1 - beta2)

    def importance(self) -> Tensor:
        """Return the importance of each triplet, [r]: of its value plus the means over column and row (equation 7)."""
        left, values, right = (
            self.get_buffer(f"{name}_sensitivity") * self.get_buffer(f"{name}_uncertainty")
            for name in ("left", "values", "right")
        )
        return values + left.mean(dim=0) + right.mean(dim=1)

    def merge(self) -> nn.Linear:
        """Return a linear layer that computes the same."""
        return plain_linear(self.inner.weight + (self.left * self.values) @ self.right, self.inner.bias)


@dataclass(frozen=True)
class AdaLoRAOptions(InsertOptions):
    _minimum: ClassVar[dict[str, float]] = {
        "item_rank": 1,
        "user_rank": 1,
        "surplus": 1,
        "orthogonality": 0,
        "warm_up_share": 0,
        "final_share": 0,
        "sensitivity_decay": 0,
        "uncertainty_decay": 0,
    }
    _below: ClassVar[dict[str, float]] = {"sensitivity_decay": 1, "uncertainty_decay": 1}

    adapter_lr: float = flag(1e-3, "Learning rate of the updates.")
    item_rank: int = flag(8, "Average rank of the updates in the item encoder at the end.")
    user_rank: int = flag(4, "Average rank of the updates in the user encoder at the end.")
    surplus: float = flag(1.5, "Rank of every update at the start, as a multiple of the final average rank.")
    orthogonality: float = flag(0.1, "Weight of the penalty that keeps P and Q orthogonal.")
    warm_up_share: float = flag(0.1, "Share of the run (of --epochs) before the ranks are lowered.")
    final_share: float = flag(0.3, "Share of the run at its end in which the ranks stay as they are.")
    sensitivity_decay: float = flag(0.85, "Decay of the running mean of an entry's sensitivity, beta_1.")
    uncertainty_decay: float = flag(0.85, "Decay of the running mean of an entry's uncertainty, beta_2.")

    def __post_init__(self):
        super().__post_init__()
        if (share := self.warm_up_share + self.final_share) >= 1:
            raise TransrecError(f"--warm_up_share and --final_share: are {share} together; they must be below 1")

    def remaining_surplus(self, step: int, steps: int) -> float:
        """Return the share of the surplus budget that is left after a step, a cubic function (section 3.3)."""
        begin, end = self.warm_up_share * steps, (1 - self.final_share) * steps
        return (1 - min(1.0, max(0.0, (step - begin) / (end - begin)))) ** 3


@register("adalora")
class AdaLoRA(Method):
    """Updates all projections of each block; the triplets of all layers in both encoders compete for the budget."""

    Options = AdaLoRAOptions
    tokenwise = True
    reads_steps = True

    def __init__(self):
        self.layers: list[SingularLinear] = []
        self.final_budget = 0

    def insert(self, place: Place, options: AdaLoRAOptions) -> list[nn.Parameter]:
        self.options = options
        rank = options.item_rank if place.tower == "item" else options.user_rank
        layers = []
        for block in place.blocks:
            parts = (block.attention.projection, block.feed_forward.entry, block.feed_forward.projection)
            for site in (block.query, block.key, block.value, *parts):
                layer = SingularLinear(site.module, math.ceil(options.surplus * rank))
                site.replace(layer)
                layers.append(layer)
        self.layers += layers
        self.final_budget += rank * len(layers)
        return [parameter for layer in layers for parameter in (layer.left, layer.values, layer.right)]

    def penalty(self) -> Tensor:
        return self.options.orthogonality * sum(layer.distance_from_orthogonal() for layer in self.layers)

    def after_step(self, step: int, steps: int) -> None:
        options, ranks = self.options, [len(layer.values) for layer in self.layers]
        for layer in self.layers:
            layer.observe(options.sensitivity_decay, options.uncertainty_decay)
        scores = torch.cat([layer.importance() for layer in self.layers])
        surplus_share = options.remaining_surplus(step, steps)
        if surplus_share == 0:
            # Triplets that are dropped by now stay dropped.
            scores[~torch.cat([layer.kept for layer in self.layers])] = -1
        budget = self.final_budget + int((sum(ranks) - self.final_budget) * surplus_share)
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[scores.topk(budget).indices] = True
        for layer, layer_kept in zip(self.layers, kept.split(ranks), strict=True):
            layer.kept.copy_(layer_kept)
            layer.values.mul_(layer_kept)
