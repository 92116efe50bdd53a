"""Item encoders, which map the modalities of an item to an embedding (docs/protocol.md)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from transrec.models.towers import Tower, make_projection

# Order of concatenation in the papers' programs; other modalities follow in alphabetical order.
FUSED_FIRST = ("image", "text")


def fusion_order(modalities: Sequence[str]) -> list[str]:
    """Return the order in which the embeddings of several modalities are concatenated."""
    others = sorted(set(modalities) - set(FUSED_FIRST))
    return [*(modality for modality in FUSED_FIRST if modality in modalities), *others]


def split_inputs(towers: Sequence[Tower], inputs: Sequence[Tensor]) -> dict[str, Sequence[Tensor]]:
    """Split the inputs of all towers into those of each tower, by modality."""
    own, start = {}, 0
    for tower in towers:
        own[tower.modality] = inputs[start : start + tower.input_count]
        start += tower.input_count
    return own


class FusedItemEncoder(nn.Module):
    """Fuses the modalities of an item: Linear(M d, d) of the towers' embeddings, in `fusion_order` (IISAN, fusion)."""

    def __init__(self, *towers: Tower):
        super().__init__()
        self.modality = "+".join(tower.modality for tower in towers)
        for tower in towers:
            self.add_module(tower.modality, tower)
        self._order = [tower.modality for tower in towers]
        width = towers[0].embedding_dim
        self.fusion = make_projection(len(towers) * width, width)

    @property
    def towers(self) -> list[Tower]:
        """The towers, one for each modality, in the order of their inputs."""
        return [self.get_submodule(modality) for modality in self._order]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return item embeddings [N, d] for the towers' inputs of N items, one tower after the other."""
        own = split_inputs(self.towers, inputs)
        embeddings = [self.get_submodule(modality)(*own[modality]) for modality in fusion_order(self._order)]
        return self.fusion(torch.cat(embeddings, dim=-1))


def make_item_encoder(towers: Sequence[Tower]) -> Tower | FusedItemEncoder:
    """Return the item encoder for one tower or several."""
    return FusedItemEncoder(*towers) if len(towers) > 1 else towers[0]
