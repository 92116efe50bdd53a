"""The decoupled side network: small towers that read the states of other towers and touch nothing inside them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transrec.errors import TransrecError
from transrec.methods.bottleneck import Bottleneck
from transrec.methods.iisan.options import INTER, IISANOptions
from transrec.models.items import fusion_order

GATE_TEMPERATURE = 0.1


def through_both(first: nn.Linear, second: nn.Linear, x: Tensor) -> Tensor:
    """second(first(x)) by the product of their weights: [N, D] -> [N, d].

    With D x D and d x D weights that takes a quarter of the arithmetic, forward and backward, of any N well above d.
    """
    return F.linear(x, second.weight @ first.weight, second(first.bias))


class Steps(nn.Module):
    """The part that towers share: a SANB and weights for each step.

    A SANB is x + adapter(x). The weights of what a step joins are softmax(p / 0.1), with learned p that start at 0, of
    the last one fixed there; of two that is a gate, g and 1 - g at g = sigmoid(p / 0.1).

    Args:
        adapters: one for each step.
        gated: learn the weights; without them everything is added.
        joined: how many states each step adds up.
    """

    def __init__(self, adapters: list[nn.Module], gated: bool, joined: int = 2):
        super().__init__()
        self.adapters = nn.ModuleList(adapters)
        shape = (len(adapters),) if joined == 2 else (len(adapters), joined - 1)
        self.gates = nn.Parameter(torch.zeros(shape)) if gated else None

    def join(self, step: int, *states: Tensor) -> Tensor:
        """The weighted sum of states [N, D] at that step; their plain sum without gates."""
        if self.gates is None:
            return sum(states[1:], states[0])
        if len(states) == 2:
            # In one pass over them.
            return torch.lerp(states[1], states[0], torch.sigmoid(self.gates[step] / GATE_TEMPERATURE))
        weights = torch.softmax(F.pad(self.gates[step], (0, 1)) / GATE_TEMPERATURE, dim=0)
        return sum(weight * state for weight, state in zip(weights, states, strict=True))


class IntraTower(Steps):
    """One modality: s <- SANB(g h_i + (1 - g) s), then Linear(D, E) and the modality's projection Linear(E, d).

    Args:
        width: D.
        end_width: E.
        keeps_first: h_0 is a step of its own, from s = 0; otherwise s starts as h_0.
    """

    def __init__(self, width: int, end_width: int, adapters: list[nn.Module], gated: bool, keeps_first: bool):
        super().__init__(adapters, gated)
        self.keeps_first = keeps_first
        self.end = nn.Linear(width, end_width)

    def forward(self, states: Sequence[Tensor], projection: nn.Linear) -> Tensor:
        """K states [N, D] -> [N, d]."""
        first, *later = states
        s, steps = (torch.zeros_like(first), [first, *later]) if self.keeps_first else (first, later)
        for number, (h, adapter) in enumerate(zip(steps, self.adapters, strict=True)):
            x = self.join(number, h, s)
            s = x + adapter(x)
        return through_both(self.end, projection, s)


class InterTower(Steps):
    """All modalities: s <- SANB(s + what the step joins of their h_i) from s = 0, then Linear(D, D), Linear(D, d).

    D is the narrowest width; states of each wider modality are first mapped to it, by a Linear of its own at each step.
    Where a modality has more states than there are steps, its last ones take part; where it has a single one, that
    takes part in each step.

    Args:
        widths: of each modality's states, in the order of fusion.
    """

    def __init__(self, widths: Mapping[str, int], adapters: list[nn.Module], gated: bool, embedding_dim: int):
        super().__init__(adapters, gated, len(widths))
        self.width = min(widths.values())
        wider = [modality for modality, of in widths.items() if of > self.width]
        # One modality's Linears after the other's.
        self.align = nn.ModuleList(nn.Linear(widths[modality], self.width) for modality in wider for _ in adapters)
        self._first_align = {modality: number * len(adapters) for number, modality in enumerate(wider)}
        self.end = nn.Linear(self.width, self.width)
        self.projection = nn.Linear(self.width, embedding_dim)

    def forward(self, states: Mapping[str, Sequence[Tensor]]) -> Tensor:
        """States [N, D_m] of each modality, in the order of fusion -> [N, d]."""
        steps = len(self.adapters)
        every = {m: of[-steps:] if len(of) > 1 else [*of] * steps for m, of in states.items()}
        first = next(iter(every.values()))[0]
        s = first.new_zeros(len(first), self.width)
        for number, adapter in enumerate(self.adapters):
            x = s + self.join(number, *(self._aligned(m, number, of[number]) for m, of in every.items()))
            s = x + adapter(x)
        return through_both(self.end, self.projection, s)

    def _aligned(self, modality: str, step: int, state: Tensor) -> Tensor:
        if modality not in self._first_align:
            return state
        return self.align[self._first_align[modality] + step](state).to(state.dtype)


class SideNetwork(nn.Module):
    """Item embeddings from states: Linear of what the towers give, in the order of fusion, the inter-modal one last.

    Over one modality it is that modality's tower and projection alone. The inter-modal tower has as many steps as the
    modality with fewest states, those with a single one aside, and reads the last ones of all (IISAN-Versa).

    Args:
        projections: Linear(D, d) of each modality, which tell its width and end its intra tower.
        steps: K, the states read of each.

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
                "--side_towers inter: joins several modalities, and items are read by one; use --modalities text image"
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
        ends = len(self.intra) + (self.inter is not None)
        self.fusion = nn.Linear(ends * embedding_dim, embedding_dim) if len(self.order) > 1 else nn.Identity()

    def forward(self, states: Mapping[str, Tensor]) -> Tensor:
        """States float [N, K, D] of each modality -> item embeddings [N, d]."""
        return self.fusion(torch.cat(list(self.ends(states).values()), dim=-1))

    def ends(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What each tower gives, [N, d], in the order of fusion."""
        # State by state: what is converted is used while it is in the processor's cache, by two towers.
        read = {modality: [h.float() for h in states[modality].unbind(1)] for modality in self.order}
        ends = {modality: tower(read[modality], self.projections[modality]) for modality, tower in self.intra.items()}
        return ends | ({INTER: self.inter(read)} if self.inter is not None else {})

    def new_parameters(self) -> list[nn.Parameter]:
        """Those of the towers, without projections and fusion."""
        return [*self.intra.parameters(), *(self.inter.parameters() if self.inter is not None else ())]
