"""IISAN: a decoupled side network beside frozen backbones, `iisan` (Fu et al., SIGIR 2024; docs/methods.md)."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from transrec.errors import TransrecError
from transrec.methods.base import Method, MethodOptions, register
from transrec.methods.bottleneck import Bottleneck
from transrec.models.items import Content, ContentItemEncoder
from transrec.models.side import SideNetwork, StateReader
from transrec.options import flag


@dataclass(frozen=True)
class IISANOptions(MethodOptions):
    _minimum: ClassVar[dict[str, float]] = {"adapter_lr": 0, "side_size": 1}
    _tensor_sizes: ClassVar[dict[str, tuple[str, int]]] = {"side_size": (r"item_encoder\.side\..*\.down\.weight", 0)}

    adapter_lr: float = flag(1e-4, "Learning rate of the side network.")
    side_size: int = flag(64, "Bottleneck size of the side network's adapters.")
    side_activation: Literal["relu", "gelu"] = flag("relu", "Their activation.")
    side_towers: Literal["intra_inter", "intra", "inter"] = flag(
        "intra_inter", "Towers: one for each modality (intra) and one for both together (inter)."
    )
    side_gates: bool = flag(True, "Learn how much of each state a step takes; without it states are added.")
    keep_embedding: bool = flag(True, "Read the embedding layer's output too, before the kept layers.")
    text_layers: list[int] = flag(
        [],
        "Layers of the text encoder to read, from 0; negative from the end (default: every second, the last included).",
    )
    image_layers: list[int] = flag([], "The same of the image encoder.")

    cached: bool = flag(False, "Train on hidden states computed once and kept on disk, without the backbones.")
    state_dtype: Literal["fp16", "fp32"] = flag("fp16", "How they are kept.")
    state_cache: str | None = flag(None, "Folder for them (default: .transrec/ beside the items file).")
    cache_device: Literal["auto", "gpu", "cpu", "disk"] = flag(
        "auto", "Where training holds them; auto: on the GPU if they fit, else in memory if they fit, else on disk."
    )

    @classmethod
    def told_by(cls, names: Collection[str]) -> dict[str, Any]:
        intra, inter = (any(f".side.{part}." in name for name in names) for part in ("intra", "inter"))
        gated = any(name.endswith(".gates") for name in names)
        towers = "intra_inter" if intra and inter else "intra" if intra else "inter"
        return {"side_towers": towers, "side_gates": gated}

    def states(self, content: Content, blocks: int) -> list[int]:
        """The states of a backbone of so many blocks that are read: 0 is the embedding layer's, k + 1 that of layer k.

        Raises TransrecError for one that the backbone does not have.
        """
        chosen = {"text": self.text_layers, "image": self.image_layers}[content] or range(blocks - 1, -1, -2)
        layers = sorted({layer + blocks if layer < 0 else layer for layer in chosen})
        if layers[0] < 0 or layers[-1] >= blocks:
            raise TransrecError(
                f"--{content}_layers {list(chosen)}: the {content} encoder has layers 0 to {blocks - 1}"
            )
        return [0, *(layer + 1 for layer in layers)]


def _side_network(projections: dict[str, nn.Linear], steps: dict[str, int], options: IISANOptions) -> SideNetwork:
    """The side network that the options call for; the projections end its intra towers."""
    return SideNetwork(
        widths={kind: projection.in_features for kind, projection in projections.items()},
        steps=steps,
        embedding_dim=next(iter(projections.values())).out_features,
        adapter=lambda width: Bottleneck(width, options.side_size, options.side_activation),
        parts=options.side_towers,
        gated=options.side_gates,
        keeps_first=options.keep_embedding,
        projections=projections,
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
        self.readers = {kind: StateReader(tower.backbone) for kind, tower in self.encoders.items()}
        self.states = {kind: options.states(kind, reader.count - 1) for kind, reader in self.readers.items()}
        steps = {kind: len(states) for kind, states in self.states.items()}
        self.side = _side_network({tower.content: tower.projection for tower in towers}, steps, options)
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
            every = self.readers[kind].read(partial(tower.read_out, *own))
            states[kind] = every[:, self.states[kind]]
        return states


class CachedTowers(nn.Module):
    """What is left of item towers whose hidden states are computed already: the projections, and how deep they are."""

    towers: ClassVar[list[ContentItemEncoder]] = []

    def __init__(self, blocks: dict[str, int], projections: dict[str, nn.Linear]):
        super().__init__()
        self.blocks, self.projections = blocks, nn.ModuleDict(projections)


class CachedItemEncoder(nn.Module):
    """A side network over hidden states that were computed before; it has no backbone.

    Args:
        blocks: of each backbone that the states are of.
        projections: Linear(D, d) for each.
    """

    towers: ClassVar[list[ContentItemEncoder]] = []

    def __init__(self, blocks: dict[str, int], projections: dict[str, nn.Linear], options: IISANOptions):
        super().__init__()
        self.kinds = list(blocks)
        self.content: Content = "multimodal" if len(blocks) > 1 else self.kinds[0]
        steps = {kind: len(options.states(kind, count)) for kind, count in blocks.items()}
        self.side = _side_network(projections, steps, options)

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
