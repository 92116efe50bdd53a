"""Optimisers by name: `adam`, `adamw`, `sgd`."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from transrec.options import Options, flag
from transrec.registry import Registry


class Optimizer:
    """Base class of all optimisers. The constructor takes the values of the optimiser's flags as keyword arguments.

    Attributes:
        Options: the dataclass of the optimiser's flags.
    """

    Options: type[Options] = Options

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the torch optimiser for parameter groups.

        Args:
            groups: each {"params": list of parameters, "lr": learning rate, "decays": bool}. `decays` is false for
                LayerNorms, biases and embeddings, to which no weight decay should be applied.
        """
        raise NotImplementedError

    def state_like(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return tensors with the shapes and dtypes of a parameter's saved state, by the optimiser's names for them."""
        raise NotImplementedError


def without_decay(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters that weight decay should not shrink: those of norms and embeddings, and biases.

    A module names others of its own in `not_decayed`.
    """
    parameters = {parameter for parameter in model.parameters() if parameter.ndim < 2}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # Position embeddings and class tokens of vision transformers are parameters, not modules.
            is_embedding = isinstance(module, nn.Embedding) or "embed" in name or name.endswith("_token")
            if is_embedding or name in getattr(module, "not_decayed", ()):
                parameters.add(parameter)
    return parameters


OPTIMIZERS: Registry[Optimizer] = Registry("optimizer", Optimizer, __name__)
register = OPTIMIZERS.register


@register("adam")
class Adam(Optimizer):
    """Adam without weight decay, as in the papers."""

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.Adam(groups, fused=True)

    def state_like(self, parameter: Tensor) -> dict[str, Tensor]:
        return {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}


@dataclass(frozen=True)
class AdamWOptions(Options):
    _minimum: ClassVar[dict[str, float]] = {"weight_decay": 0}

    weight_decay: float = flag(
        0.01, "Decoupled weight decay of all trainable parameters except LayerNorms, biases and embeddings."
    )


@register("adamw")
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019)."""

    Options = AdamWOptions

    def __init__(self, weight_decay: float):
        self.weight_decay = weight_decay

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        decayed = [{**group, "weight_decay": self.weight_decay if group["decays"] else 0.0} for group in groups]
        return torch.optim.AdamW(decayed, fused=True)


@dataclass(frozen=True)
class SGDOptions(Options):
    _minimum: ClassVar[dict[str, float]] = {"momentum": 0, "weight_decay": 0}
    _below: ClassVar[dict[str, float]] = {"momentum": 1}

    momentum: float = flag(0.9, "Momentum of stochastic gradient descent; 0: no momentum.")
    weight_decay: float = flag(0.0, "L2 penalty on all trainable parameters.")


@register("sgd")
class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    Options = SGDOptions

    def __init__(self, momentum: float, weight_decay: float):
        self.momentum, self.weight_decay = momentum, weight_decay

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, momentum=self.momentum, weight_decay=self.weight_decay)

    def state_like(self, parameter: Tensor) -> dict[str, Tensor]:
        return {"momentum_buffer": parameter} if self.momentum else {}
