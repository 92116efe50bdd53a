"""Side adapters on chosen layers, fused with the last: `kadapter` (Wang et al., ACL Findings 2021; docs/methods.md)."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from transrec.errors import TransrecError
from transrec.methods.base import ROUNDING, AdapterOptions, Method, Place, register
from transrec.models.user_encoders.sasrec import MASKED, SASRecBlock
from transrec.options import flag

INIT_STD = 2e-4
BLOCKS = 2


class SideAdapter(nn.Module):
    """A(x) = x + up(blocks(down(x))): two post-LN transformer blocks of width r; down and up start as N(0, 2e-4)."""

    def __init__(self, width: int, size: int, heads: int, dropout: float):
        super().__init__()
        if size % heads:
            raise TransrecError(f"a K-Adapter of size {size} cannot be divided among {heads} heads; choose a divisor")
        self.down = nn.Linear(width, size)
        self.blocks = nn.ModuleList(SASRecBlock(size, heads, dropout) for _ in range(BLOCKS))
        self.up = nn.Linear(size, width)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=INIT_STD)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return [B, T, D] for x [B, T, D] and an additive mask that broadcasts to [B, 1, T, T] (query, key)."""
        y = self.down(x)
        for block in self.blocks:
            y = block(y, mask)
        return x + self.up(y)


class KAdapter(nn.Module):
    """h <- A_k(hidden_k + h) over the chosen layers, h_0 = 0; the stack's output becomes Linear(concat(last, h)).

    The adapters run next to the stack's blocks and read hidden states through hooks: hidden_k is the output of block k
    in the item encoder, and its input in the user encoder. The attention mask is that of the last block.

    Args:
        layers: numbers of the chosen blocks, ascending.
        masked: apply the blocks' own attention mask inside the adapters; otherwise every position sees every other.
    """

    # The adapters follow the recommender's mode, even if the backbone is kept in eval mode.
    follows_mode = True
    cannot_merge = "its adapters are transformers of their own, which read the hidden states of several layers"

    def __init__(self, place: Place, layers: list[int], size: int, heads: int, dropout: float, masked: bool):
        super().__init__()
        width = place.stack.width
        self.layers, self.masked, self.reads_input = layers, masked, place.tower == "user"
        self.adapters = nn.ModuleList(SideAdapter(width, size, heads, dropout) for _ in layers)
        self.fusion = nn.Linear(2 * width, width)
        if masked:
            # [I, 0], so that the output is the stack's own at first. The released programs keep torch's initialisation.
            with torch.no_grad():
                self.fusion.weight.copy_(torch.eye(width, 2 * width))
                self.fusion.bias.zero_()
        # A decoder's blocks receive no mask if no text is padded, but are causal all the same.
        self._is_causal = getattr(place.stack.blocks[0].query.parent, "is_causal", False)
        self._hidden: dict[int, Tensor] = {}
        self._last = len(place.stack.blocks) - 1
        for number, block in enumerate(place.stack.blocks):
            if number in layers or number == self._last:
                block.module.register_forward_hook(partial(self._after_block, number), with_kwargs=True)

    def _after_block(
        self, number: int, block: nn.Module, arguments: tuple, options: dict[str, Any], output: Any
    ) -> Any:
        """Called after block `number`; return the replacement for the output of the last block."""
        hidden = output[0] if isinstance(output, tuple) else output
        if number in self.layers:
            self._hidden[number] = arguments[0] if self.reads_input else hidden
        if number != self._last:
            return None
        mask = arguments[1] if len(arguments) > 1 else options.get("attention_mask")
        mask = self._additive_mask(mask, options.get("is_causal", self._is_causal), hidden)
        h = torch.zeros_like(hidden)
        for layer, adapter in zip(self.layers, self.adapters, strict=True):
            h = adapter(self._hidden.pop(layer) + h, mask)
        fused = self.fusion(torch.cat([hidden, h], dim=-1))
        return (fused, *output[1:]) if isinstance(output, tuple) else fused

    def _additive_mask(self, mask: Tensor | None, is_causal: bool, hidden: Tensor) -> Tensor:
        """Return the blocks' mask as an additive mask; blocks receive an additive mask, a boolean mask or none."""
        length = hidden.shape[1]
        if self.masked and mask is None and is_causal:
            mask = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()[None, None]
        if not self.masked or mask is None:
            return hidden.new_zeros(1, 1, 1, length)
        return mask if mask.is_floating_point() else torch.where(mask.bool(), 0.0, MASKED)


@dataclass(frozen=True)
class KAdapterOptions(AdapterOptions):
    _minimum: ClassVar[dict[str, float]] = {
        "item_size": 1,
        "user_size": 1,
        "item_heads": 1,
        "user_heads": 1,
        "adapter_dropout": 0,
    }
    _tensor_sizes: ClassVar[dict[str, tuple[str, int]]] = {
        "item_size": (r"item_encoder\..*\.k_adapter\.adapters\.0\.down\.weight", 0),
        "user_size": (r"user_encoder\.k_adapter\.adapters\.0\.down\.weight", 0),
    }

    adapter_lr: float = flag(5e-6, "Learning rate of the parameters that the method trains.")
    item_layers: list[int] = flag(
        [0, -1], "Layers with an adapter among the item encoder's layers that --insert names, from 0; -1 is the last."
    )
    item_size: int = flag(192, "Width of the adapters' transformer blocks in the item encoder.")
    item_heads: int = flag(12, "Attention heads of the adapters' transformer blocks in the item encoder.")
    user_size: int = flag(16, "Width of the adapters' transformer blocks in the user encoder.")
    user_heads: int = flag(2, "Attention heads of the adapters' transformer blocks in the user encoder.")
    adapter_dropout: float = flag(0.1, "Dropout inside the adapters.")
    variant: Literal["paper", "published"] = flag(
        "paper",
        "published: as in the released programs, whose adapters mask neither padding nor future items, and whose "
        "fusion layer starts from torch's own initialisation.",
    )


@register("kadapter")
class KAdapterMethod(Method):
    """Adapters on the chosen layers of the item encoder, and on the blocks of the user encoder that --insert names."""

    Options = KAdapterOptions
    # The fusion starts as [I, 0].
    changes_at_insertion = ROUNDING

    @staticmethod
    def reads_padding(options: KAdapterOptions) -> bool:
        return options.variant == "published" and not options.insert.startswith("user")

    def insert(self, place: Place, options: KAdapterOptions) -> list[nn.Parameter]:
        count = len(place.blocks)
        if place.stack.is_shared:
            raise TransrecError(
                "--method kadapter: the layers of this backbone share their blocks, so none of them can be chosen; use "
                "another method or another backbone"
            )
        if place.tower == "item":
            size, heads = options.item_size, options.item_heads
            layers = sorted({layer + count if layer < 0 else layer for layer in options.item_layers})
            if not layers or layers[0] < 0 or layers[-1] >= count:
                raise TransrecError(
                    f"--item_layers {options.item_layers}: --insert {options.insert} has layers 0 to {count - 1}"
                )
            layers = [len(place.stack.blocks) - count + layer for layer in layers]
        else:
            size, heads = options.user_size, options.user_heads
            layers = [number for number, block in enumerate(place.stack.blocks) if block in place.blocks]
        masked = options.variant == "paper"
        adapter = KAdapter(place, layers, size, heads, options.adapter_dropout, masked)
        place.stack.module.k_adapter = adapter
        return list(adapter.parameters())
