"""Bottleneck adapters, all presets of one module (docs/methods.md).

- `houlsby`: behind both sub-layers (Houlsby et al., ICML 2019).
- `parallel`: beside both sub-layers, reading their input (He et al., ICLR 2022).
- `pfeiffer`: behind the feed-forward sub-layer (Pfeiffer et al., EACL 2021); its variant `adapterhub` is what the
  preset of that name in AdapterHub's `adapters` computes.
- `pfeiffer_attention`: behind the attention sub-layer (pfeiffer_ver2 of the released Adapter4Rec scripts).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from transrec.errors import TransrecError
from transrec.methods.base import AdapterOptions, Method, Place, parameters_of, register
from transrec.models.backbone import Block, Sublayer
from transrec.models.user_encoders.sasrec import LAYER_NORM_EPS
from transrec.options import flag

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
INIT_STD = 0.01


class Bottleneck(nn.Module):
    """Linear(D, r) -> activation -> Linear(r, D).

    Weights are N(0, 0.01) and biases 0, so that it starts close to zero; `near_zero=False` leaves torch's own init.
    """

    def __init__(self, width: int, size: int, activation: str = "relu", near_zero: bool = True):
        super().__init__()
        self.down = nn.Linear(width, size)
        self.activation = ACTIVATIONS[activation]()
        self.up = nn.Linear(size, width)
        if near_zero:
            for linear in (self.down, self.up):
                nn.init.normal_(linear.weight, std=INIT_STD)
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.up(self.activation(self.down(x)))


class SerialAdapter(nn.Module):
    """y + adapter(y) in the place of `inner`, whose output y is; adapter(y) alone without `residual`."""

    cannot_merge = "between the adapter's two matrices stands an activation, which no weight can take in"

    def __init__(self, inner: nn.Module, adapter: nn.Module, residual: bool = True):
        super().__init__()
        self.inner = inner
        self.adapter = adapter
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y + self.adapter(y) if self.residual else self.adapter(y)


class InputAdapter(nn.Module):
    """In the place of `inner`, whose output y is, something made of y and the sub-layer's input x.

    `reader`, which reads x first, is watched for it: x is held from there to the sub-layer's end and then let go.
    """

    cannot_merge = "the adapter is a second path beside the sub-layer, with an activation that no weight can take in"

    def __init__(self, inner: nn.Module, adapter: nn.Module, reader: nn.Module):
        super().__init__()
        self.inner = inner
        self.adapter = adapter
        self._x: Tensor | None = None
        # A bound method, so that a copied model watches its own modules.
        reader.register_forward_pre_hook(self._watch)

    def _watch(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self._x = arguments[0]

    def forward(self, inner_input: Tensor) -> Tensor:
        x, self._x = self._x, None
        return self.combine(self.inner(inner_input), x)

    def combine(self, y: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError


class ParallelAdapter(InputAdapter):
    """y + adapter(x)."""

    def combine(self, y: Tensor, x: Tensor) -> Tensor:
        return y + self.adapter(x)


class ParallelAdapterWithSkip(InputAdapter):
    """y + x + adapter(x), x the residual stream: what the released programs compute; the residual adds x once more."""

    def combine(self, y: Tensor, x: Tensor) -> Tensor:
        return y + x + self.adapter(x)


class AdaptedNorm(nn.LayerNorm):
    """LN(adapter(LN(z)) + z) in the place of a block's LN, z the residual plus the sub-layer's output.

    LN keeps its parameters and their names. This is AdapterHub's `pfeiffer`.
    """

    cannot_merge = "the adapter follows the LayerNorm, with an activation that no weight can take in"

    def __init__(self, norm: nn.LayerNorm, adapter: nn.Module):
        super().__init__(norm.normalized_shape, eps=norm.eps)
        self.weight, self.bias = norm.weight, norm.bias
        self.adapter = adapter

    def forward(self, z: Tensor) -> Tensor:
        return self.last_norm(self.adapter(super().forward(z)) + z)

    def last_norm(self, x: Tensor) -> Tensor:
        return super().forward(x)


class AdapterBetweenNorms(AdaptedNorm):
    """LN2(adapter(LN(z)) + z), LN2 new: `pfeiffer` of the released programs."""

    def __init__(self, norm: nn.LayerNorm, adapter: nn.Module):
        super().__init__(norm, adapter)
        self.norm = nn.LayerNorm(norm.normalized_shape, eps=LAYER_NORM_EPS)

    def last_norm(self, x: Tensor) -> Tensor:
        return self.norm(x)


@dataclass(frozen=True)
class BottleneckOptions(AdapterOptions):
    _minimum: ClassVar[dict[str, float]] = {"item_bottleneck": 1, "user_bottleneck": 1}
    _tensor_sizes: ClassVar[dict[str, tuple[str, int]]] = {
        "item_bottleneck": (r"item_encoder\..*\.adapter\.down\.weight", 0),
        "user_bottleneck": (r"user_encoder\..*\.adapter\.down\.weight", 0),
    }

    item_bottleneck: int = flag(64, "Bottleneck size of the adapters in the item encoder.")
    user_bottleneck: int = flag(16, "Bottleneck size of the adapters in the user encoder.")
    activation: Literal["relu", "gelu", "tanh"] = flag("relu", "Activation of the adapters.")

    def size(self, place: Place) -> int:
        return self.item_bottleneck if place.tower == "item" else self.user_bottleneck


@dataclass(frozen=True)
class ParallelOptions(BottleneckOptions):
    variant: Literal["paper", "published"] = flag(
        "paper",
        "published: as the released programs, which add the sub-layer's input once more; in image encoders beside the "
        "feed-forward sub-layer alone, reading the residual stream.",
    )


@dataclass(frozen=True)
class PfeifferOptions(BottleneckOptions):
    train_layernorm: bool = flag(True, "Also train the LayerNorms of where the method is inserted.")
    adapter_lr: float = flag(1e-4, "Learning rate of what the method trains.")
    variant: Literal["paper", "published", "adapterhub"] = flag(
        "paper",
        "published: as the released programs, the adapter between two LayerNorms and with torch's own init; "
        "adapterhub: as AdapterHub's preset of that name, the adapter between two uses of the block's own LayerNorm.",
    )


@dataclass(frozen=True)
class PfeifferAttentionOptions(BottleneckOptions):
    adapter_lr: float = flag(1e-4, "Learning rate of what the method trains.")


class BottleneckMethod(Method):
    """Puts one adapter at each of the chosen sub-layers of each block."""

    Options = BottleneckOptions
    changes_at_insertion = "adapters add a little to the output of their sub-layers: their weights are N(0, 0.01)"

    def sublayers(self, block: Block, options: BottleneckOptions) -> tuple[Sublayer, ...]:
        """Which sub-layers of a block get an adapter."""
        return block.sublayers

    def attach(self, sublayer: Sublayer, place: Place, options: BottleneckOptions) -> list[nn.Module]:
        """Attach an adapter to the sub-layer; returns the modules that are new."""
        adapter = self.bottleneck(place, options)
        sublayer.output.replace(SerialAdapter(sublayer.output.module, adapter))
        return [adapter]

    def bottleneck(self, place: Place, options: BottleneckOptions, near_zero: bool = True) -> Bottleneck:
        """A new adapter of the place's width and the options' size."""
        return Bottleneck(place.stack.width, options.size(place), options.activation, near_zero)

    def insert(self, place: Place, options: BottleneckOptions) -> list[nn.Parameter]:
        sublayers = [sublayer for block in place.blocks for sublayer in self.sublayers(block, options)]
        return parameters_of(new for sublayer in sublayers for new in self.attach(sublayer, place, options))


@register("houlsby")
class Houlsby(BottleneckMethod):
    """One adapter behind the attention and one behind the feed-forward sub-layer, before the residual."""


@register("parallel")
class Parallel(BottleneckMethod):
    """One adapter beside each sub-layer: it reads the sub-layer's input, its output is added to the sub-layer's."""

    Options = ParallelOptions

    def sublayers(self, block: Block, options: ParallelOptions) -> tuple[Sublayer, ...]:
        # The released image program, whose blocks are pre-LN, leaves attention alone.
        pre_ln = block.feed_forward.norm is None
        return (block.feed_forward,) if options.variant == "published" and pre_ln else block.sublayers

    def attach(self, sublayer: Sublayer, place: Place, options: ParallelOptions) -> list[nn.Module]:
        adapter = self.bottleneck(place, options)
        if options.variant == "published":
            parallel = ParallelAdapterWithSkip(sublayer.output.module, adapter, sublayer.stream.module)
        else:
            parallel = ParallelAdapter(sublayer.output.module, adapter, sublayer.entry.module)
        sublayer.output.replace(parallel)
        return [adapter]


@register("pfeiffer")
class Pfeiffer(BottleneckMethod):
    """One adapter per block, behind the feed-forward sub-layer."""

    Options = PfeifferOptions

    def sublayers(self, block: Block, options: PfeifferOptions) -> tuple[Sublayer, ...]:
        return (block.feed_forward,)

    def attach(self, sublayer: Sublayer, place: Place, options: PfeifferOptions) -> list[nn.Module]:
        if options.variant == "paper":
            return super().attach(sublayer, place, options)
        if sublayer.norm is None:
            raise TransrecError(
                f"--variant {options.variant} of pfeiffer needs a LayerNorm behind each block; use --variant paper"
            )
        if options.variant == "published":
            norm = AdapterBetweenNorms(sublayer.norm.module, self.bottleneck(place, options, near_zero=False))
            new = [norm.adapter, norm.norm]
        else:
            norm = AdaptedNorm(sublayer.norm.module, self.bottleneck(place, options))
            new = [norm.adapter]
        sublayer.norm.replace(norm)
        return new


@register("pfeiffer_attention")
class PfeifferAttention(BottleneckMethod):
    """One adapter per block, behind the attention sub-layer."""

    Options = PfeifferAttentionOptions

    def sublayers(self, block: Block, options: PfeifferAttentionOptions) -> tuple[Sublayer, ...]:
        return (block.attention,)
