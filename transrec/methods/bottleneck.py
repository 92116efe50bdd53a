"""Bottleneck adapters: `houlsby` (Houlsby et al., ICML 2019; Adapter4Rec section 3, METHODS section 3)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from transrec.methods.base import InsertOptions, Method, Place, register
from transrec.options import flag

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
INIT_STD = 0.01


class Bottleneck(nn.Module):
    """Linear(D, r) -> activation -> Linear(r, D); weights N(0, 0.01), biases 0, so close to zero at the start."""

    def __init__(self, width: int, size: int, activation: str = "relu"):
        super().__init__()
        self.down = nn.Linear(width, size)
        self.activation = ACTIVATIONS[activation]()
        self.up = nn.Linear(size, width)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=INIT_STD)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.up(self.activation(self.down(x)))


class SerialAdapter(nn.Module):
    """y + adapter(y) in the place of `inner`, whose output y is."""

    def __init__(self, inner: nn.Module, adapter: nn.Module):
        super().__init__()
        self.inner = inner
        self.adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y + self.adapter(y)


@dataclass(frozen=True)
class BottleneckOptions(InsertOptions):
    _minimum: ClassVar[dict[str, float]] = {**InsertOptions._minimum, "item_bottleneck": 1, "user_bottleneck": 1}

    item_bottleneck: int = flag(64, "Bottleneck size in the item encoder.")
    user_bottleneck: int = flag(16, "Bottleneck size in the user encoder.")
    activation: Literal["relu", "gelu", "tanh"] = flag("relu", "Activation of the adapters.")

    def size(self, place: Place) -> int:
        return self.item_bottleneck if place.tower == "item" else self.user_bottleneck


@register("houlsby")
class Houlsby(Method):
    """One adapter behind the attention and one behind the feed-forward sub-layer of each block, before the residual."""

    Options = BottleneckOptions

    def insert(self, place: Place, options: BottleneckOptions) -> list[nn.Module]:
        adapters = []
        for block in place.blocks:
            for sublayer in block.sublayers:
                adapter = Bottleneck(place.stack.width, options.size(place), options.activation)
                sublayer.output.replace(SerialAdapter(sublayer.output.module, adapter))
                adapters.append(adapter)
        return adapters
