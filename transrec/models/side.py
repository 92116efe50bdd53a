"""The decoupled side network (IISAN): small towers that read a backbone's hidden states and touch nothing inside it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transrec.errors import TransrecError
from transrec.models.backbone import blocks_of
from transrec.models.items import ContentItemEncoder

GATE_TEMPERATURE = 0.1


class StateReader:
    """Reads what a backbone's blocks pass on where an item is read: state 0 is what the first is given, state k what
    block k gives.

    The last state of an image backbone is the last block's, before the LayerNorm behind it; that of a text backbone is
    what it gives out, in decoders behind their last norm. A block that several layers share (ALBERT) gives a state each
    time that it runs.
    """

    def __init__(self, tower: ContentItemEncoder):
        # The tower holds its readers' hooks: a reference back would be a module within itself.
        self.pool, self.ends_in_output = tower.pool, tower.content == "text"
        # None while nobody reads.
        self._states: list[Tensor] | None = None
        self._inputs: tuple[Tensor, ...] = ()
        blocks = blocks_of(tower.backbone)
        blocks[0].register_forward_pre_hook(self._first, with_kwargs=True)
        for block in blocks:
            block.register_forward_hook(self._next)
        self.count = 1 + tower.backbone.config.num_hidden_layers

    def _first(self, block: nn.Module, arguments: tuple, options: dict) -> None:
        if self._states == []:
            self._states = [self.pool(arguments[0] if arguments else options["hidden_states"], *self._inputs)]

    def _next(self, block: nn.Module, arguments: tuple, output) -> None:
        if self._states is not None:
            self._states.append(self.pool(output[0] if isinstance(output, tuple) else output, *self._inputs))

    def read(self, read_out: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Run the tower's `read_out` on the inputs of N items: float32 states [N, 1 + blocks, D], without gradient."""
        self._inputs, self._states = inputs, []
        with torch.no_grad():
            output = read_out(*inputs)
            states = [*self._states[:-1], output] if self.ends_in_output else self._states
            self._states = None
            return torch.stack(states, dim=1).float()


def through_both(first: nn.Linear, second: nn.Linear, x: Tensor) -> Tensor:
    """second(first(x)) by the product of their weights: [N, D] -> [N, d].

    With D x D and d x D weights that takes a quarter of the arithmetic, forward and backward, of any N well above d.
    """
    return F.linear(x, second.weight @ first.weight, second(first.bias))


class Steps(nn.Module):
    """The part that towers share: a SANB and a gate for each step.

    A SANB is x + adapter(x); a gate is sigmoid(p / 0.1) with a learned p that starts at 0.

    Args:
        adapters: one for each step.
        gated: learn gates; without them everything is added.
    """

    def __init__(self, adapters: list[nn.Module], gated: bool):
        super().__init__()
        self.adapters = nn.ModuleList(adapters)
        self.gates = nn.Parameter(torch.zeros(len(adapters))) if gated else None

    def join(self, step: int, one: Tensor, other: Tensor) -> Tensor:
        """g one + (1 - g) other at that step's gate g, in one pass over them; their sum without gates."""
        if self.gates is None:
            return one + other
        return torch.lerp(other, one, torch.sigmoid(self.gates[step] / GATE_TEMPERATURE))


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
    """Both modalities: s <- SANB(s + g h_i^image + (1 - g) h_i^text) from s = 0, then Linear(D, D), Linear(D, d).

    D is the narrower width; states of the wider modality are first mapped to it, by a Linear of its own at each step.
    Where there are more states than steps, the last ones take part.

    Args:
        widths: of image and text states.
    """

    def __init__(self, widths: tuple[int, int], adapters: list[nn.Module], gated: bool, embedding_dim: int):
        super().__init__(adapters, gated)
        self.widths = widths
        width = min(widths)
        alike = widths[0] == widths[1]
        self.align = nn.ModuleList([] if alike else [nn.Linear(max(widths), width) for _ in adapters])
        self.end = nn.Linear(width, width)
        self.projection = nn.Linear(width, embedding_dim)

    def forward(self, image: Sequence[Tensor], text: Sequence[Tensor]) -> Tensor:
        """States [N, D_image] and states [N, D_text] -> [N, d]."""
        s = image[0].new_zeros(len(image[0]), min(self.widths))
        last = slice(-len(self.adapters), None)
        steps = zip(image[last], text[last], self.adapters, strict=True)
        for number, (h_image, h_text, adapter) in enumerate(steps):
            if self.align and self.widths[0] > self.widths[1]:
                h_image = self.align[number](h_image).to(s.dtype)
            elif self.align:
                h_text = self.align[number](h_text).to(s.dtype)
            x = s + self.join(number, h_image, h_text)
            s = x + adapter(x)
        return through_both(self.end, self.projection, s)


class SideNetwork(nn.Module):
    """Item embeddings from hidden states: Linear of what the towers give, in the order image, text, inter.

    Over one modality it is that modality's tower and projection alone. The inter-modal tower has as many steps as the
    modality with fewer states, and reads the last ones of both (IISAN-Versa).

    Args:
        widths: D of each modality's states.
        steps: K, the states read of each.
        adapter: makes an adapter of a width.
        parts: "intra", "inter" or "intra_inter".
        keeps_first: whether the first state is a step of its own.
        projections: Linear(D, d) that end the intra towers; new ones where not given.
        narrow: intra towers end in Linear(D, d), Linear(d, d) instead of Linear(D, D), Linear(D, d) (IISAN-Versa).

    Raises TransrecError for an inter-modal tower over one modality.
    """

    def __init__(
        self,
        widths: dict[str, int],
        steps: dict[str, int],
        embedding_dim: int,
        adapter: Callable[[int], nn.Module],
        parts: str = "intra_inter",
        gated: bool = True,
        keeps_first: bool = True,
        projections: dict[str, nn.Linear] | None = None,
        narrow: bool = False,
    ):
        super().__init__()
        # The order of fusion.
        kinds = [kind for kind in ("image", "text") if kind in widths]
        counts = {kind: steps[kind] - (not keeps_first) for kind in kinds}
        intra, inter = (part in parts.split("_") for part in ("intra", "inter"))
        inter = inter and (len(widths) == 2 or not intra)
        if inter and len(widths) == 1:
            raise TransrecError("--side_towers inter: needs titles and images; use --item_tower multimodal")
        self.intra, self.projections = nn.ModuleDict(), nn.ModuleDict()
        for kind in kinds if intra else ():
            adapters = [adapter(widths[kind]) for _ in range(counts[kind])]
            end_width = embedding_dim if narrow else widths[kind]
            self.intra[kind] = IntraTower(widths[kind], end_width, adapters, gated, keeps_first)
            given = None if narrow else (projections or {}).get(kind)
            self.projections[kind] = given or nn.Linear(end_width, embedding_dim)
        self.inter = None
        if inter:
            both = (widths["image"], widths["text"])
            adapters = [adapter(min(both)) for _ in range(min(counts.values()))]
            self.inter = InterTower(both, adapters, gated, embedding_dim)
        ends = len(self.intra) + inter
        fuses = len(widths) > 1
        self.fusion = nn.Linear(ends * embedding_dim, embedding_dim) if fuses else nn.Identity()

    def forward(self, states: dict[str, Tensor]) -> Tensor:
        """States float [N, K, D] of each modality -> item embeddings [N, d]."""
        return self.fusion(torch.cat(list(self.ends(states).values()), dim=-1))

    def ends(self, states: dict[str, Tensor]) -> dict[str, Tensor]:
        """What each tower gives, [N, d], in the order of fusion."""
        # State by state: what is converted is used while it is in the processor's cache, by two towers.
        read = {kind: [h.float() for h in of.unbind(1)] for kind, of in states.items()}
        ends = {kind: tower(read[kind], self.projections[kind]) for kind, tower in self.intra.items()}
        return ends | ({"inter": self.inter(read["image"], read["text"])} if self.inter is not None else {})

    def new_parameters(self) -> list[nn.Parameter]:
        """Those of the towers, without projections and fusion."""
        return [*self.intra.parameters(), *(self.inter.parameters() if self.inter is not None else ())]
