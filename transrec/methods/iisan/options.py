"""Flags of `iisan`."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from transrec.errors import TransrecError
from transrec.methods.base import MethodOptions
from transrec.options import flag

INTRA_END = re.compile(r"\.side\.intra\.\w+\.end\.weight$")
FIRST_DOWN = re.compile(r"\.side\.(intra\.\w+|inter)\.adapters\.0\.down\.weight$")
# The name of the tower that joins the modalities, next to the modalities' own names.
INTER = "inter"


@dataclass(frozen=True)
class IISANOptions(MethodOptions):
    _minimum: ClassVar[dict[str, float]] = {"adapter_lr": 0, "side_size": 1, "side_layers": 0}

    adapter_lr: float = flag(1e-4, "Learning rate of the side network.")
    side_size: list[int] | int = flag(
        64,
        "Bottleneck size of the side network's adapters: one for all, or one for each modality in the order of "
        "--modalities, optionally followed by one for the inter-modal tower (else the narrower modality's size).",
    )
    side_activation: Literal["relu", "gelu"] = flag("relu", "Activation of the side network's adapters.")
    side_towers: Literal["intra_inter", "intra", "inter"] = flag(
        "intra_inter", "Towers of the side network: one for each modality (intra) and one for all together (inter)."
    )
    side_gates: bool = flag(True, "Weight the states that a step joins by learned gates; otherwise they are added up.")
    keep_embedding: bool = flag(True, "Also read the output of the embedding layer, as the first state.")
    narrow_end: bool = flag(
        False,
        "End each intra-modal tower in Linear(D, d), Linear(d, d), as IISAN-Versa does, instead of Linear(D, D), "
        "Linear(D, d).",
    )
    side_layers: int = flag(
        0,
        "Number of layers that are read from each encoder, evenly spaced and including the last; 0: half of the layers "
        "of the shallowest encoder.",
    )
    text_layers: list[int] = flag(
        [],
        "Layers of the text encoder that are read, numbered from 0, or negative from the end; replaces --side_layers.",
    )
    image_layers: list[int] = flag(
        [],
        "Layers of the image encoder that are read, numbered from 0, or negative from the end; replaces --side_layers.",
    )

    def __post_init__(self):
        # A single size for all is stored as a number, as in runs of earlier releases.
        if isinstance(self.side_size, list) and len(self.side_size) == 1:
            object.__setattr__(self, "side_size", self.side_size[0])
        super().__post_init__()

    @property
    def _sizes(self) -> list[int]:
        return self.side_size if isinstance(self.side_size, list) else [self.side_size]

    def adapter_sizes(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Return the adapter sizes of each modality, in the order of `widths`, and of the inter-modal tower.

        Raises TransrecError if --side_size has too few or too many values.
        """
        values, count = self._sizes, len(widths)
        if len(values) == 1:
            return dict.fromkeys([*widths, INTER], values[0])
        if len(values) not in (count, count + (count > 1)):
            raise TransrecError(
                f"--side_size {' '.join(map(str, values))}: give one size for all, or {count}, one for each of "
                f"{', '.join(widths)}" + (", or one more for the inter-modal tower" if count > 1 else "")
            )
        sizes = dict(zip([*widths, INTER], values, strict=False))
        # As in the original programs: the size of the narrowest modality, and text's if widths are equal.
        narrowest = min(widths, key=lambda modality: (widths[modality], modality != "text"))
        return {INTER: sizes[narrowest]} | sizes

    @classmethod
    def flags_from_tensors(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        intra, inter = (any(f".side.{part}." in name for name in tensors) for part in ("intra", INTER))
        sizes = {match[1]: len(t) for name, t in tensors.items() if (match := FIRST_DOWN.search(name))}
        # The order of the modalities in an original checkpoint.
        ordered = [sizes[tower] for tower in ("intra.text", "intra.image", INTER) if tower in sizes]
        size = {} if not ordered else {"side_size": ordered if len(set(ordered)) > 1 else ordered[0]}
        return size | {
            "side_towers": "intra_inter" if intra and inter else "intra" if intra else INTER,
            "side_gates": any(name.endswith(".gates") for name in tensors),
            "narrow_end": any(t.shape[0] != t.shape[1] for name, t in tensors.items() if INTRA_END.search(name)),
        }

    def states(self, depths: Mapping[str, int]) -> dict[str, list[int]]:
        """Return the states that are read from backbones with `depths` layers, by modality.

        State 0 is the output of the embedding layer, and state k + 1 that of layer k.

        Raises TransrecError for a layer that a backbone does not have, and if more layers are requested than it has.
        """
        return {modality: self._states(modality, depth, min(depths.values())) for modality, depth in depths.items()}

    def _states(self, modality: str, depth: int, shallowest: int) -> list[int]:
        chosen: Sequence[int] = getattr(self, f"{modality}_layers", [])
        count = self.side_layers or math.ceil(shallowest / 2)
        if count > depth and not chosen:
            raise TransrecError(f"--side_layers {count}: the {modality} encoder has {depth} layers")
        # Half of the layers means every second one (IISAN); fewer are spread as widely as possible (Versa).
        apart = 2 if count == math.ceil(depth / 2) else (depth - 1) // max(1, count - 1)
        layers = sorted({layer + depth if layer < 0 else layer for layer in chosen}) or [
            depth - 1 - number * apart for number in reversed(range(count))
        ]
        if layers[0] < 0 or layers[-1] >= depth:
            raise TransrecError(f"--{modality}_layers {chosen}: the {modality} encoder has layers 0 to {depth - 1}")
        return [0, *(layer + 1 for layer in layers)]
