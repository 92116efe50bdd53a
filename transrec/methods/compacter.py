"""Compacter: adapters of Kronecker products, `compacter` (Karimi Mahabadi et al., NeurIPS 2021; docs/methods.md)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transrec.errors import TransrecError
from transrec.methods.base import AdapterOptions, Method, Place, register
from transrec.methods.bottleneck import SerialAdapter
from transrec.options import flag

RULE_STD = 0.01


class KroneckerLinear(nn.Module):
    """Linear layer x W + b, with W = sum_i A_i (x) u_i v_i^T of size [in, out].

    Args:
        rule: the matrices A_i, [n, n, n], shared by all adapters.

    Raises TransrecError if n does not divide both sizes.
    """

    def __init__(self, in_features: int, out_features: int, rule: nn.Parameter):
        super().__init__()
        n = len(rule)
        if in_features % n or out_features % n:
            raise TransrecError(
                f"--kronecker {n}: must divide both sizes of every adapter, here {in_features} and {out_features}"
            )
        self.rule = rule
        self.left = nn.Parameter(torch.empty(n, in_features // n, 1))
        self.right = nn.Parameter(torch.empty(n, 1, out_features // n))
        self.bias = nn.Parameter(torch.zeros(out_features))
        for factor in (self.left, self.right):
            for matrix in factor:
                nn.init.xavier_uniform_(matrix)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        weight = torch.einsum("iac,ibd->abcd", self.rule, self.left @ self.right)
        return x @ weight.reshape(len(self.left) * self.left.shape[1], -1) + self.bias


class KroneckerBottleneck(nn.Module):
    """KroneckerLinear(D, r) -> tanh-approximated GELU -> KroneckerLinear(r, D)."""

    def __init__(self, width: int, size: int, rule: nn.Parameter):
        super().__init__()
        self.down = KroneckerLinear(width, size, rule)
        self.up = KroneckerLinear(size, width, rule)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        return self.up(F.gelu(self.down(x), approximate="tanh"))


@dataclass(frozen=True)
class CompacterOptions(AdapterOptions):
    _minimum: ClassVar[dict[str, float]] = {"item_bottleneck": 1, "user_bottleneck": 1, "kronecker": 1}
    _tensor_sizes: ClassVar[dict[str, tuple[str, int]]] = {
        "item_bottleneck": (r"item_encoder\..*\.adapter\.down\.bias", 0),
        "user_bottleneck": (r"user_encoder\..*\.adapter\.down\.bias", 0),
        "kronecker": (r".*\.adapter\.down\.left", 0),
    }

    adapter_lr: float = flag(4e-3, "Learning rate of the parameters that the method trains.")
    train_layernorm: bool = flag(True, "Also train the LayerNorms where the method is inserted.")
    item_bottleneck: int = flag(64, "Bottleneck size of the adapters in the item encoder.")
    user_bottleneck: int = flag(16, "Bottleneck size of the adapters in the user encoder.")
    kronecker: int = flag(
        4, "n of Compacter: each weight is a sum of n Kronecker products, whose first factors are n x n matrices."
    )
    variant: Literal["paper", "published"] = flag(
        "paper", "published: as in the released programs, without the residual connection around the adapter."
    )


@register("compacter")
class Compacter(Method):
    """One adapter after each sub-layer; all adapters of the recommender share the A_i as one parameter."""

    Options = CompacterOptions
    tokenwise = True
    changes_at_insertion = "adapters add a little to their sub-layers' output: their shared factors are N(0, 0.01)"

    def __init__(self):
        self.rule: nn.Parameter | None = None

    def insert(self, place: Place, options: CompacterOptions) -> list[nn.Parameter]:
        if self.rule is None:
            self.rule = nn.Parameter(RULE_STD * torch.randn(3 * (options.kronecker,)))
        size = options.item_bottleneck if place.tower == "item" else options.user_bottleneck
        trained = [self.rule]
        for block in place.blocks:
            for sublayer in block.sublayers:
                adapter = KroneckerBottleneck(place.stack.width, size, self.rule)
                residual = options.variant == "paper"
                sublayer.output.replace(SerialAdapter(sublayer.output.module, adapter, residual))
                trained += adapter.parameters()
        return trained
