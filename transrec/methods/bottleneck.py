"""Bottleneck adapters: four methods that insert the same module at different sites (docs/methods.md).

- `houlsby`: after both sub-layers (Houlsby et al., ICML 2019).
- `parallel`: parallel to both sub-layers, reading their input (He et al., ICLR 2022).
- `pfeiffer`: after the feed-forward sub-layer (Pfeiffer et al., EACL 2021); its variant `adapterhub` computes the same
  as the preset `pfeiffer` in AdapterHub's `adapters`.
- `pfeiffer_attention`: after the attention sub-layer (called pfeiffer_ver2 in the released Adapter4Rec scripts).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from transrec.errors import TransrecError
from transrec.methods.base import AdapterOptions, Method, Place, parameters_of, register
from transrec.models.backbone import Block, Sublayer, is_norm
from transrec.models.user_encoders.sasrec import LAYER_NORM_EPS
from transrec.options import flag

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
INIT_STD = 0.01


class Bottleneck(nn.Module):
    """Linear(D, r) -> activation -> Linear(r, D).

    Weights are drawn from N(0, 0.01) and biases are 0, so that the output starts close to zero; `near_zero=False`
    keeps torch's own initialisation.
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
        """Map [..., D] to [..., D]."""
        return self.up(self.activation(self.down(x)))


class SerialAdapter(nn.Module):
    """Replaces `inner`, whose output is y, and returns y + adapter(y); without `residual`, adapter(y) alone."""

    cannot_merge = "there is an activation between the adapter's two matrices, so no weight can take the adapter in"

    def __init__(self, inner: nn.Module, adapter: nn.Module, residual: bool = True):
        super().__init__()
        self.inner = inner
        self.adapter = adapter
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y + self.adapter(y) if self.residual else self.adapter(y)


class InputAdapter(nn.Module):
    """Replaces `inner`, whose output is y, and combines y with the sub-layer's input x.

    A hook on `reader`, the first module that reads x, stores x until the end of the sub-layer.
    """

    cannot_merge = "the adapter is a second path beside the sub-layer with an activation, so no weight can take it in"

    def __init__(self, inner: nn.Module, adapter: nn.Module, reader: nn.Module):
        super().__init__()
        self.inner = inner
        self.adapter = adapter
        self._x: Tensor | None = None
        # The hook is a bound method, so that a copied model watches its own modules.
        reader.register_forward_pre_hook(self._record_input)

    def _record_input(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        # Only its first input: DeBERTa's query projection then projects the relative positions, too.
        if self._x is None:
            self._x = arguments[0]

    def forward(self, inner_input: Tensor) -> Tensor:
        x, self._x = self._x, None
        return self.combine(self.inner(inner_input), x)

    def combine(self, y: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError


class ParallelAdapter(InputAdapter):
    """Replaces `inner` and returns y + adapter(x)."""

    def combine(self, y: Tensor, x: Tensor) -> Tensor:
        return y + self.adapter(x)


class ParallelAdapterWithSkip(InputAdapter):
    """Returns y + x + adapter(x), x the residual stream, as the released programs do; the residual adds x again."""

    def combine(self, y: Tensor, x: Tensor) -> Tensor:
        return y + x + self.adapter(x)


class AdaptedNorm(nn.LayerNorm):
    """Replaces a block's LN and returns LN(adapter(LN(z)) + z), where z is the residual plus the sub-layer's output.

    LN keeps its parameters and their names. This is AdapterHub's `pfeiffer`.
    """

    cannot_merge = "the adapter follows the LayerNorm and has an activation, so no weight can take it in"

    def __init__(self, norm: nn.LayerNorm, adapter: nn.Module):
        super().__init__(norm.normalized_shape, eps=norm.eps)
        self.weight, self.bias = norm.weight, norm.bias
        self.adapter = adapter

    def forward(self, z: Tensor) -> Tensor:
        return self.last_norm(self.adapter(super().forward(z)) + z)

    def last_norm(self, x: Tensor) -> Tensor:
        return super().forward(x)


class AdapterBetweenNorms(AdaptedNorm):
    """Returns LN2(adapter(LN(z)) + z) with a new LayerNorm LN2, as `pfeiffer` of the released programs does."""

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
        "published: as in the released programs, which add the sub-layer's input a second time; in image encoders only "
        "the feed-forward sub-layer has an adapter, which reads the residual stream.",
    )


@dataclass(frozen=True)
class PfeifferOptions(BottleneckOptions):
    train_layernorm: bool = flag(True, "Also train the LayerNorms where the method is inserted.")
    adapter_lr: float = flag(1e-4, "Learning rate of the parameters that the method trains.")
    variant: Literal["paper", "published", "adapterhub"] = flag(
        "paper",
        "published: as in the released programs, with the adapter between two LayerNorms and torch's own "
        "initialisation; adapterhub: as in AdapterHub's preset pfeiffer, with the adapter between two uses of the "
        "block's own LayerNorm.",
    )


@dataclass(frozen=True)
class PfeifferAttentionOptions(BottleneckOptions):
    adapter_lr: float = flag(1e-4, "Learning rate of the parameters that the method trains.")


class BottleneckMethod(Method):
    """Base of the methods here: inserts one adapter at each chosen sub-layer of each block."""

    Options = BottleneckOptions
    tokenwise = True
    changes_at_insertion = "adapters add a little to the output of their sub-layers: their weights are N(0, 0.01)"

    def sublayers(self, block: Block, options: BottleneckOptions) -> tuple[Sublayer, ...]:
        """Return the sub-layers of a block that get an adapter."""
        return block.sublayers

    def attach(self, sublayer: Sublayer, place: Place, options: BottleneckOptions) -> list[nn.Module]:
        """Attach an adapter to the sub-layer, and return the new modules."""
        adapter = self.bottleneck(place, options)
        sublayer.output.replace(SerialAdapter(sublayer.output.module, adapter))
        return [adapter]

    def bottleneck(self, place: Place, options: BottleneckOptions, near_zero: bool = True) -> Bottleneck:
        """Return a new adapter with the place's width and the bottleneck size of the options."""
        return Bottleneck(place.stack.width, options.size(place), options.activation, near_zero)

    def insert(self, place: Place, options: BottleneckOptions) -> list[nn.Parameter]:
        sublayers = [sublayer for block in place.blocks for sublayer in self.sublayers(block, options)]
        return parameters_of(new for sublayer in sublayers for new in self.attach(sublayer, place, options))


@register("houlsby")
class Houlsby(BottleneckMethod):
    """One adapter after the attention and one after the feed-forward sub-layer, each before the residual addition."""


@register("parallel")
class Parallel(BottleneckMethod):
    """One adapter parallel to each sub-layer: it reads the sub-layer's input and is added to the sub-layer's output."""

    Options = ParallelOptions

    def sublayers(self, block: Block, options: ParallelOptions) -> tuple[Sublayer, ...]:
        # The released image program, whose blocks are pre-LN, inserts no adapter at the attention sub-layer.
        pre_ln = block.feed_forward.norm is None
        if options.variant == "published" and sum(map(is_norm, block.module.children())) > 2:
            raise TransrecError(
                f"--variant published of parallel needs one norm for each sub-layer, and {type(block.module).__name__} "
                f"has more; use --variant paper"
            )
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
    """One adapter per block, after the feed-forward sub-layer."""

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
    """One adapter per block, after the attention sub-layer."""

    Options = PfeifferAttentionOptions

    def sublayers(self, block: Block, options: PfeifferAttentionOptions) -> tuple[Sublayer, ...]:
        return (block.attention,)
