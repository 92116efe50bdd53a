"""The method `iisan`: a side network over the towers of an item encoder."""

from collections.abc import Sequence

from torch import Tensor, nn

from transrec.errors import TransrecError
from transrec.methods.base import Method, register
from transrec.methods.iisan.network import SideNetwork
from transrec.methods.iisan.options import IISANOptions
from transrec.models.items import split_inputs
from transrec.models.towers import Tower


class SideItemEncoder(nn.Module):
    """Item encoder with a side network over the hidden states of any towers. Their backbones are only read.

    Args:
        towers: the item encoder's towers; their projections become the last layers of the intra-modal towers.
    """

    def __init__(self, towers: Sequence[Tower], options: IISANOptions):
        super().__init__()
        self.modality = "+".join(tower.modality for tower in towers)
        self.encoders = nn.ModuleDict({tower.modality: tower for tower in towers})
        depths = {tower.modality: tower.depth for tower in towers if tower.depth is not None}
        for modality, states in options.states(depths).items():
            self.encoders[modality].states = states
        projections = {tower.modality: tower.projection for tower in towers}
        self.side = SideNetwork(projections, {m: len(numbers) for m, numbers in self.states.items()}, options)
        for tower in towers:
            tower.projection = None

    @property
    def towers(self) -> list[Tower]:
        """The towers, one for each modality, in the order of their inputs."""
        return list(self.encoders.values())

    @property
    def states(self) -> dict[str, list[int]]:
        """The numbers of the states that are read from each tower, by modality."""
        return {tower.modality: tower.states for tower in self.towers}

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return item embeddings [N, d] for the towers' inputs of N items, one tower after the other."""
        return self.side(self.read_states(*inputs))

    def read_states(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Return the chosen states of each tower, [N, K, D]; backbones run in eval mode and without gradient."""
        return {m: self.encoders[m].read(*own) for m, own in split_inputs(self.towers, inputs).items()}


@register("iisan")
class IISAN(Method):
    """Trains the side network, the projections, the fusion and the user encoder; the backbones are only read."""

    Options = IISANOptions
    trains_recommender = True
    tokenwise = True
    changes_at_insertion = "the side network embeds items, in the place of the backbones' output"

    def rebuild(self, item_encoder: nn.Module, options: IISANOptions) -> tuple[nn.Module, list[nn.Parameter]]:
        for tower in item_encoder.towers:
            if not tower.states:
                raise TransrecError(f"--method iisan: {tower.stateless_noun} have no hidden states to read")
        rebuilt = SideItemEncoder(item_encoder.towers, options)
        return rebuilt, rebuilt.side.new_parameters()
