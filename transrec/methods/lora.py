"""Low-rank updates of the query and value projections: `lora` (Hu et al., ICLR 2022; docs/methods.md)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import loralib
from torch import nn

from transrec.errors import TransrecError
from transrec.methods.base import AdapterOptions, Method, Place, plain_linear, register
from transrec.models.backbone import Site
from transrec.options import flag


class LowRankLinear(loralib.Linear):
    """Linear layer W x + b + scaling B A x, as loralib computes it."""

    def merge(self) -> nn.Linear:
        """Return the equivalent plain linear layer, with the weight W + scaling B A."""
        return plain_linear(self.weight + self.scaling * self.lora_B @ self.lora_A, self.bias)


@dataclass(frozen=True)
class LoRAOptions(AdapterOptions):
    _minimum: ClassVar[dict[str, float]] = {
        "item_rank": 1,
        "user_rank": 1,
        "lora_scaling": 0,
    }
    _tensor_sizes: ClassVar[dict[str, tuple[str, int]]] = {
        "item_rank": (r"item_encoder\..*\.lora_A", 0),
        "user_rank": (r"user_encoder\..*\.lora_A", 0),
    }

    adapter_lr: float = flag(1e-3, "Learning rate of the parameters that the method trains.")
    item_rank: int = flag(12, "Rank of LoRA's updates in the item encoder.")
    user_rank: int = flag(4, "Rank of LoRA's updates in the user encoder.")
    lora_scaling: float = flag(1.0, "Scaling of the low-rank update: W x + scaling B A x.")
    variant: Literal["paper", "published"] = flag(
        "paper",
        "published: as in the released programs, which replace query and value projections by newly drawn frozen "
        "weights and trained biases, and scale by 1 / rank; over images all of SASRec's new value projection trains.",
    )


@register("lora")
class LoRA(Method):
    """Adds scaling B A x to the query and value projections; B starts at zero and W keeps the pretrained values."""

    Options = LoRAOptions
    tokenwise = True

    def insert(self, place: Place, options: LoRAOptions) -> list[nn.Parameter]:
        rank = options.item_rank if place.tower == "item" else options.user_rank
        trained = []
        for block in place.blocks:
            for site in (block.query, block.value):
                if site == block.value and self._is_value_replaced(place, options):
                    trained += self._replace_value(site)
                    continue
                layer = self._layer(site, rank, options)
                site.replace(layer)
                trained += [layer.lora_A, layer.lora_B]
                if options.variant == "published":
                    trained.append(layer.bias)
        return trained

    @staticmethod
    def _is_value_replaced(place: Place, options: LoRAOptions) -> bool:
        return options.variant == "published" and (place.tower, place.modality) == ("user", "image")

    @staticmethod
    def _replace_value(site: Site) -> list[nn.Parameter]:
        """Replace a value projection by a new linear layer, and return its parameters, all of which train.

        The released image program does so in SASRec, whose value projection it gives the rank zero.
        """
        layer = nn.Linear(site.module.in_features, site.module.out_features)
        site.replace(layer)
        return list(layer.parameters())

    @staticmethod
    def _layer(site: Site, rank: int, options: LoRAOptions) -> LowRankLinear:
        old = site.module
        full_rank = min(old.in_features, old.out_features)
        if rank > full_rank:
            raise TransrecError(
                f"a LoRA rank of {rank} is not a low rank: the matrices here have only {full_rank}; lower --item_rank "
                f"or --user_rank"
            )
        published = options.variant == "published"
        scaling = 1 / rank if published else options.lora_scaling
        layer = LowRankLinear(
            old.in_features,
            old.out_features,
            r=rank,
            lora_alpha=scaling * rank,
            merge_weights=False,
            bias=published or old.bias is not None,
        )
        if not published:
            # loralib draws a new W, which would lose what the backbone has learned.
            layer.weight = old.weight
            layer.bias = old.bias
        return layer.requires_grad_(False)
