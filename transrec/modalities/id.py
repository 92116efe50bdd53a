"""Item IDs without content (`id`): a baseline with one learned vector per item."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from transrec.data.dataset import Dataset
from transrec.data.features import IdFeatures
from transrec.modalities.base import Modality, register
from transrec.models.towers import Tower
from transrec.training.distributed import World


class IdTower(Tower):
    """Embedding(n + 1, d) with padding in row 0, Xavier-normal; it has no projection and no hidden states."""

    modality = "id"
    stateless_noun = "learned vectors (id)"

    def __init__(self, item_count: int, embedding_dim: int):
        super().__init__(embedding_dim, embedding_dim, [])
        self.embedding = nn.Embedding(item_count + 1, embedding_dim, padding_idx=0)
        nn.init.xavier_normal_(self.embedding.weight)
        nn.init.zeros_(self.embedding.weight.data[0])

    def forward(self, items: Tensor) -> Tensor:
        """Return item embeddings [N, d] of items int64 [N], numbers 1..n."""
        return self.embedding(items)


@register("id")
class Id(Modality):
    name: ClassVar[str] = "id"
    reads: ClassVar[str] = "item IDs"

    def features(self, dataset: Dataset, rows: np.ndarray, world: World) -> IdFeatures:
        return IdFeatures(world.device)

    def tower(self, embedding_dim: int, known: Mapping[str, Any], seed: Callable[[str], None], draw: bool) -> IdTower:
        seed("id")
        return IdTower(known["item_count"], embedding_dim)
