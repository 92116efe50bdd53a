"""IISAN: a decoupled side network beside frozen backbones, `iisan` (Fu et al., SIGIR 2024; docs/methods.md)."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from transrec.errors import TransrecError
from transrec.methods.base import Method, MethodOptions, register
from transrec.methods.bottleneck import Bottleneck
from transrec.models.backbone import Modality
from transrec.models.items import Content, ContentItemEncoder
from transrec.models.side import SideNetwork, StateReader
from transrec.options import flag

INTRA_END = re.compile(r"\.side\.intra\.\w+\.end\.weight$")


@dataclass(frozen=True)
class IISANOptions(MethodOptions):
    _minimum: ClassVar[dict[str, float]] = {"adapter_lr": 0, "side_size": 1, "side_layers": 0}
    _tensor_sizes: ClassVar[dict[str, tuple[str, int]]] = {"side_size": (r"item_encoder\.side\..*\.down\.weight", 0)}

    adapter_lr: float = flag(1e-4, "Learning rate of the side network.")
    side_size: int = flag(64, "Bottleneck size of the side network's adapters.")
    side_activation: Literal["relu", "gelu"] = flag("relu", "Their activation.")
    side_towers: Literal["intra_inter", "intra", "inter"] = flag(
        "intra_inter", "Towers: one for each modality (intra) and one for both together (inter)."
    )
    side_gates: bool = flag(True, "Learn how much of each state a step takes; without it states are added.")
    keep_embedding: bool = flag(True, "Read the embedding layer's output too, before the kept layers.")
    narrow_end: bool = flag(
        False, "End intra towers in Linear(D, d), Linear(d, d) instead of Linear(D, D), Linear(D, d), as Versa does."
    )
    side_layers: int = flag(
        0, "Read so many layers of each encoder, evenly apart, the last included; 0: half of the shallower one's."
    )
    text_layers: list[int] = flag([], "The text encoder's layers to read instead, from 0; negative from the end.")
    image_layers: list[int] = flag([], "The same of the image encoder.")

    cached: bool = flag(False, "Train on hidden states computed once and kept on disk, without the backbones.")
    state_dtype: Literal["fp16", "fp32"] = flag("fp16", "How they are kept.", aliases=["--dtype"])
    state_cache: str | None = flag(None, "Folder for them (default: .transrec/ beside the items file).")
    cache_device: Literal["auto", "gpu", "cpu", "disk"] = flag(
        "auto", "Where training holds them; auto: on the GPU if they fit, else in memory if they fit, else on disk."
    )

    @classmethod
    def told_by(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        intra, inter = (any(f".side.{part}." in name for name in tensors) for part in ("intra", "inter"))
        return {
            "side_towers": "intra_inter" if intra and inter else "intra" if intra else "inter",
            "side_gates": any(name.endswith(".gates") for name in tensors),
            "narrow_end": any(t.shape[0] != t.shape[1] for name, t in tensors.items() if INTRA_END.search(name)),
        }

    def states(self, blocks: dict[Modality, int]) -> dict[Modality, list[int]]:
        """The states that are read of backbones of so many blocks: 0 is the embedding layer's, k + 1 that of layer k.

        Raises TransrecError for a layer that a backbone does not have, and when more are to be read than it has.
        """
        return {content: self._states(content, count, min(blocks.values())) for content, count in blocks.items()}

    def _states(self, content: Modality, blocks: int, shallowest: int) -> list[int]:
        given = {"text": self.text_layers, "image": self.image_layers}[content]
        count = self.side_layers or math.ceil(shallowest / 2)
        if count > blocks and not given:
            raise TransrecError(f"--side_layers {count}: the {content} encoder has {blocks} layers")
        # Half of the layers is every second one (IISAN); fewer are spread from the last as far as they go (Versa).
        apart = 2 if count == math.ceil(blocks / 2) else (blocks - 1) // max(1, count - 1)
        layers = sorted({layer + blocks if layer < 0 else layer for layer in given}) or [
            blocks - 1 - number * apart for number in reversed(range(count))
        ]
        if layers[0] < 0 or layers[-1] >= blocks:
            raise TransrecError(f"--{content}_layers {given}: the {content} encoder has layers 0 to {blocks - 1}")
        return [0, *(layer + 1 for layer in layers)]


def side_network(projections: dict[str, nn.Linear], steps: dict[str, int], options: IISANOptions) -> SideNetwork:
    """The side network that the options call for, over so many states of each modality.

    The projections, Linear(D, d), tell its sizes and end its intra towers.
    """
    return SideNetwork(
        widths={kind: projection.in_features for kind, projection in projections.items()},
        steps=steps,
        embedding_dim=next(iter(projections.values())).out_features,
        adapter=lambda width: Bottleneck(width, options.side_size, options.side_activation),
        parts=options.side_towers,
        gated=options.side_gates,
        keeps_first=options.keep_embedding,
        projections=projections,
        narrow=options.narrow_end,
    )


class SideItemEncoder(nn.Module):
    """A side network over the hidden states of frozen backbones, which run for every batch.

    Args:
        towers: the item encoder's own; their backbones are read, their projections end the intra towers.
    """

    def __init__(self, towers: list[ContentItemEncoder], content: Content, options: IISANOptions):
        super().__init__()
        self.content = content
        self.encoders = nn.ModuleDict({tower.content: tower for tower in towers})
        self.readers = {kind: StateReader(tower) for kind, tower in self.encoders.items()}
        self.states = options.states({kind: reader.count - 1 for kind, reader in self.readers.items()})
        steps = {kind: len(states) for kind, states in self.states.items()}
        self.side = side_network({tower.content: tower.projection for tower in towers}, steps, options)
        for tower in towers:
            tower.projection = None

    @property
    def towers(self) -> list[ContentItemEncoder]:
        """The parts that have a backbone."""
        return list(self.encoders.values())

    def forward(self, *inputs: Tensor) -> Tensor:
        """The backbones' inputs of N items, the text's first -> item embeddings [N, d]."""
        return self.side(self.read_states(*inputs))

    def read_states(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The kept states of each backbone, [N, K, D]; the backbones run in eval mode and without gradient."""
        states, rest = {}, list(inputs)
        for kind, tower in self.encoders.items():
            count = 2 if kind == "text" else 1
            own, rest = rest[:count], rest[count:]
            every = self.readers[kind].read(tower.read_out, *own)
            states[kind] = every[:, self.states[kind]]
        return states


class CachedTowers(nn.Module):
    """What is left of item towers whose hidden states are computed already: the projections, and how deep they are."""

    towers: ClassVar[list[ContentItemEncoder]] = []

    def __init__(self, blocks: dict[Modality, int], projections: dict[str, nn.Linear]):
        super().__init__()
        self.blocks, self.projections = blocks, nn.ModuleDict(projections)


class CachedItemEncoder(nn.Module):
    """A side network over hidden states that were computed before; it has no backbone.

    Args:
        blocks: of each backbone that the states are of.
        projections: Linear(D, d) for each.
    """

    towers: ClassVar[list[ContentItemEncoder]] = []

    def __init__(self, blocks: dict[Modality, int], projections: dict[str, nn.Linear], options: IISANOptions):
        super().__init__()
        self.kinds = list(blocks)
        self.content: Content = "multimodal" if len(blocks) > 1 else self.kinds[0]
        steps = {kind: len(states) for kind, states in options.states(blocks).items()}
        self.side = side_network(projections, steps, options)

    def forward(self, *states: Tensor) -> Tensor:
        """Kept states float [N, K, D] of each modality, the text's first -> item embeddings [N, d]."""
        return self.side(dict(zip(self.kinds, states, strict=True)))


@register("iisan")
class IISAN(Method):
    """The side network, the projections, the fusion and the user encoder train; the backbones are only read."""

    Options = IISANOptions
    trains_recommender = True

    def rebuild(self, item_encoder: nn.Module, options: IISANOptions) -> tuple[nn.Module, list[nn.Parameter]]:
        if isinstance(item_encoder, CachedTowers):
            rebuilt: nn.Module = CachedItemEncoder(item_encoder.blocks, dict(item_encoder.projections.items()), options)
        elif item_encoder.towers:
            rebuilt = SideItemEncoder(item_encoder.towers, item_encoder.content, options)
        else:
            raise TransrecError("--method iisan: items are represented by learned vectors, which have no hidden states")
        return rebuilt, rebuilt.side.new_parameters()
