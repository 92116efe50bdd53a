"""Cosine similarity of frozen item embeddings: `zero_shot`."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch.nn import functional as F

from transrec.baselines.base import Baseline, register
from transrec.data.features import Features
from transrec.data.interactions import Split
from transrec.data.states import StateFeatures
from transrec.training.distributed import World
from transrec.training.evaluation import Scorer

ITEMS_AT_ONCE = 4096


@register("zero_shot")
class ZeroShot(Baseline):
    """Ranks items by their mean cosine similarity to the items of the context, without training.

    The embeddings are the last states of an item in each modality: hidden states that the run has stored for a frozen
    backbone, or precomputed vectors. All modalities have equal weight. A run without stored states, for instance
    because its backbones train, has no row for this baseline in its tables.
    """

    label: ClassVar[str] = "cosine of frozen embeddings"

    def fit(self, split: Split, parts: Sequence[Features], world: World) -> Scorer | None:
        if not parts or not all(isinstance(part, StateFeatures) for part in parts):
            return None
        blocks = torch.arange(1, split.item_count + 1).split(ITEMS_AT_ONCE)
        normalised = [
            torch.cat([F.normalize(part.inputs(items)[0][:, -1].float(), dim=-1) for items in blocks]) for part in parts
        ]
        embeddings = torch.cat(normalised, dim=1) / len(normalised) ** 0.5

        def mean(contexts: torch.Tensor) -> torch.Tensor:
            mask = (contexts > 0).unsqueeze(-1)
            return (embeddings[(contexts - 1).clamp(min=0)] * mask).sum(1) / mask.sum(1).clamp(min=1)

        return Scorer(embeddings, mean)
