"""The decoupled side network: small towers that read the states of other towers without changing them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transrec.errors import TransrecError
from transrec.methods.bottleneck import Bottleneck
from transrec.methods.iisan.options import INTER, IISANOptions
from transrec.models.items import fusion_order

GATE_TEMPERATURE = 0.1


def fused_linear(first: nn.Linear, second: nn.Linear, x: Tensor) -> Tensor:
    """Return second(first(x)), computed with the product of the two weights: [N, D] -> [N, d].

    With D x D and d x D weights this takes a quarter of the arithmetic, forward and backward, for any N well above d.
    """
    return F.linear(x, second.weight @ first.weight, second(first.bias))


class SideTower(nn.Module):
    """Base of the towers: a SANB and mixing weights for each step.

    A SANB is x + adapter(x). Each step joins states with the weights softmax(p / 0.1). The logits p are learned and
    start at 0; the last one stays fixed at 0. For two states this is a gate: g and 1 - g, with g = sigmoid(p / 0.1).

    Args:
        adapters: one for each step.
        gated: learn the weights; otherwise the states are added up.
        states_per_step: the number of states that each step joins.
    """

    not_decayed = ("gates",)

    def __init__(self, adapters: list[nn.Module], gated: bool, states_per_step: int = 2):
        super().__init__()
        self.adapters = nn.ModuleList(adapters)
        shape = (len(adapters),) if states_per_step == 2 else (len(adapters), states_per_step - 1)
        self.gates = nn.Parameter(torch.zeros(shape)) if gated else None

    def join(self, step: int, *states: Tensor) -> Tensor:
        """Return the weighted sum of states [N, D] at a step; without gates, the plain sum."""
        if self.gates is None:
            return sum(states[1:], states[0])
        if len(states) == 2:
            # lerp makes a single pass over the states.
            return torch.lerp(states[1], states[0], torch.sigmoid(self.gates[step] / GATE_TEMPERATURE))
        weights = torch.softmax(F.pad(self.gates[step], (0, 1)) / GATE_TEMPERATURE, dim=0)
        return sum(weight * state for weight, state in zip(weights, states, strict=True))


class IntraTower(SideTower):
    """Tower of one modality: s <- SANB(g h_i + (1 - g) s), then Linear(D, E) and its projection Linear(E, d).

    Args:
        width: D.
        end_width: E.
        keeps_first: start from s = 0 and take h_0 as the first step; otherwise start from s = h_0.
    """

    def __init__(self, width: int, end_width: int, adapters: list[nn.Module], gated: bool, keeps_first: bool):
        super().__init__(adapters, gated)
        self.keeps_first = keeps_first
        self.end = nn.Linear(width, end_width)

    def forward(self, states: Sequence[Tensor], projection: nn.Linear) -> Tensor:
        """Map K states [N, D] to [N, d]."""
        first, *later = states
        s, steps = (torch.zeros_like(first), [first, *later]) if self.keeps_first else (first, later)
        for number, (h, adapter) in enumerate(zip(steps, self.adapters, strict=True)):
            x = self.join(number, h, s)
            s = x + adapter(x)
        return fused_linear(self.end, projection, s)


class InterTower(SideTower):
    """Tower of all modalities: s <- SANB(s + the joined h_i of the step) from s = 0, then Linear(D, D), Linear(D, d).

    D is the smallest width. At each step, a separate Linear first maps the state of each wider modality to D. If a
    modality has more states than there are steps, its last states are used; if it has a single state, that state is
    used in each step.

    Args:
        widths: the width of each modality's states, in the order of fusion.
    """

    def __init__(self, widths: Mapping[str, int], adapters: list[nn.Module], gated: bool, embedding_dim: int):
        super().__init__(adapters, gated, len(widths))
        self.width = min(widths.values())
        wider = [modality for modality, width in widths.items() if width > self.width]
        # All Linears of one modality, then all of the next.
        self.align = nn.ModuleList(nn.Linear(widths[modality], self.width) for modality in wider for _ in adapters)
        self._first_align = {modality: number * len(adapters) for number, modality in enumerate(wider)}
        self.end = nn.Linear(self.width, self.width)
        self.projection = nn.Linear(self.width, embedding_dim)

    def forward(self, states: Mapping[str, Sequence[Tensor]]) -> Tensor:
        """Map the states [N, D_m] of each modality, in the order of fusion, to [N, d]."""
        steps = len(self.adapters)
        inputs = {m: hs[-steps:] if len(hs) > 1 else [*hs] * steps for m, hs in states.items()}
        first = next(iter(inputs.values()))[0]
        s = first.new_zeros(len(first), self.width)
        for number, adapter in enumerate(self.adapters):
            x = s + self.join(number, *(self._aligned(m, number, hs[number]) for m, hs in inputs.items()))
            s = x + adapter(x)
        return fused_linear(self.end, self.projection, s)

    def _aligned(self, modality: str, step: int, state: Tensor) -> Tensor:
        if modality not in self._first_align:
            return state
        return self.align[self._first_align[modality] + step](state).to(state.dtype)


class SideNetwork(nn.Module):
    """Computes item embeddings: Linear of the towers' outputs, in the order of fusion, the inter-modal one last.

    With one modality, it is that modality's tower and projection alone. The inter-modal tower has as many steps as the
    modality with the fewest states, not counting modalities with a single state, and reads the last states of each
    modality (IISAN-Versa).

    Args:
        projections: Linear(D, d) of each modality; it tells the modality's width and ends its intra-modal tower.
        steps: K, the number of states that are read from each modality.

    Raises TransrecError for an inter-modal tower over one modality.
    """

    def __init__(self, projections: Mapping[str, nn.Linear], steps: Mapping[str, int], options: IISANOptions):
        super().__init__()
        self.order = fusion_order(list(projections))
        embedding_dim = next(iter(projections.values())).out_features
        widths = {modality: projection.in_features for modality, projection in projections.items()}
        sizes = options.adapter_sizes(widths)
        counts = {modality: count - (not options.keep_embedding) for modality, count in steps.items()}
        intra, inter = (part in options.side_towers.split("_") for part in ("intra", INTER))
        if inter and not intra and len(self.order) == 1:
            raise TransrecError(
                "--side_towers inter: joins several modalities, but items have only one; use --modalities text image"
            )

        def adapters(count: int, width: int, tower: str) -> list[nn.Module]:
            return [Bottleneck(width, sizes[tower], options.side_activation) for _ in range(count)]

        self.intra, self.projections = nn.ModuleDict(), nn.ModuleDict()
        for modality in self.order if intra else ():
            width = widths[modality]
            end_width = embedding_dim if options.narrow_end else width
            own = adapters(counts[modality], width, modality)
            self.intra[modality] = IntraTower(width, end_width, own, options.side_gates, options.keep_embedding)
            narrow = options.narrow_end
            self.projections[modality] = nn.Linear(end_width, embedding_dim) if narrow else projections[modality]
        self.inter = None
        if inter and len(self.order) > 1:
            fewest = min((counts[modality] for modality in self.order if steps[modality] > 1), default=1)
            ordered = {modality: widths[modality] for modality in self.order}
            own = adapters(fewest, min(widths.values()), INTER)
            self.inter = InterTower(ordered, own, options.side_gates, embedding_dim)
        tower_count = len(self.intra) + (self.inter is not None)
        self.fusion = nn.Linear(tower_count * embedding_dim, embedding_dim) if len(self.order) > 1 else nn.Identity()

    def forward(self, states: Mapping[str, Tensor]) -> Tensor:
        """Map the states float [N, K, D] of each modality to item embeddings [N, d]."""
        return self.fusion(torch.cat(list(self.tower_outputs(states).values()), dim=-1))

    def tower_outputs(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the output of each tower, [N, d], in the order of fusion."""
        # Converted state by state, so that both towers use a state while it is in the processor's cache.
        read = {modality: [h.float() for h in states[modality].unbind(1)] for modality in self.order}
        outputs = {
            modality: tower(read[modality], self.projections[modality]) for modality, tower in self.intra.items()
        }
        return outputs | ({INTER: self.inter(read)} if self.inter is not None else {})

    def new_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the towers, without projections and fusion."""
        return [*self.intra.parameters(), *(self.inter.parameters() if self.inter is not None else ())]
