"""Towers: one modality of an item, read as states or as one vector. Who made what a tower reads is not its business."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transrec.models.backbone import blocks_of
from transrec.models.spread import is_spread


def make_projection(width: int, embedding_dim: int) -> nn.Linear:
    """Linear(D, d), Xavier-normal, biases zero."""
    projection = nn.Linear(width, embedding_dim)
    nn.init.xavier_normal_(projection.weight)
    nn.init.zeros_(projection.bias)
    return projection


class Tower(nn.Module):
    """One modality of an item. By itself it is an item encoder: what stands for the item -> Linear(D, d) -> GELU.

    Attributes:
        modality: what it reads.
        input_count: the number of tensors that it takes as input.
        embedding_dim: d.
        width: D.
        depth: layers of the backbone, whose states are 0 to depth; None for what no backbone has made.
        states: which states `read` gives, by their numbers; K of them.
        stateless: where there are none, what has no states.
        projection: Linear(D, d); None once a method has taken it over.
        backbone: what it runs; None where it reads what was computed before.
        backbone_dropout: whether the backbone's own dropout is active in training mode; off, the backbone stays in eval
            mode whatever mode the tower is in, but for inserted modules that set `follows_mode`.
    """

    modality: str
    input_count: int = 1
    stateless: str = ""
    depth: int | None = None
    backbone_dropout: bool = True

    def __init__(self, embedding_dim: int, width: int, states: Sequence[int]):
        super().__init__()
        self.embedding_dim, self.width, self.states = embedding_dim, width, list(states)
        self.backbone: nn.Module | None = None
        self.projection: nn.Linear | None = None

    @property
    def towers(self) -> "list[Tower]":
        """Itself."""
        return [self]

    @property
    def trains_inside(self) -> bool:
        """Whether anything trains inside the backbone that it runs."""
        return self.backbone is not None and any(p.requires_grad for p in self.backbone.parameters())

    def forward(self, *inputs: Tensor) -> Tensor:
        """The inputs of N items -> item embeddings [N, d]."""
        return F.gelu(self.projection(self.read_out(*inputs)))

    def read_out(self, *inputs: Tensor) -> Tensor:
        """The inputs of N items -> what stands for each, [N, D]."""
        raise NotImplementedError

    def read(self, *inputs: Tensor) -> Tensor:
        """The inputs of N items -> the chosen states [N, K, D], without gradient."""
        raise NotImplementedError


class StoredTower(Tower):
    """Its inputs are the states, float16 or float32 [N, K, D], chosen already; the last of them stands for the item.

    Args:
        states: K, or, of a backbone's states, how many there are to choose from.
        depth: layers of the backbone that has made them, if one has.
    """

    def __init__(self, modality: str, embedding_dim: int, width: int, states: int, depth: int | None = None):
        super().__init__(embedding_dim, width, range(states))
        self.modality, self.depth = modality, depth
        self.projection = make_projection(width, embedding_dim)

    def read_out(self, states: Tensor) -> Tensor:
        return states[:, -1].float()

    def read(self, states: Tensor) -> Tensor:
        return states


class BackboneTower(Tower):
    """Runs a backbone. State 0 is the input of its first block, state k the output of block k.

    Attributes:
        ends_in_output: whether the last state is `read_out`'s, not the last block's.
        constants: names of the backbone's parameters that never train (MAE's positions are sines).
    """

    ends_in_output: ClassVar[bool] = False

    def __init__(self, backbone: nn.Module, embedding_dim: int):
        depth = backbone.config.num_hidden_layers
        super().__init__(embedding_dim, backbone.config.hidden_size, range(1 + depth))
        self.depth = depth
        self.backbone = backbone
        self.constants = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
        self.projection = make_projection(self.width, embedding_dim)
        self._reader: StateReader | None = None
        # What the first block that runs is given, while it is not given it yet.
        self._hidden: Tensor | None = None
        self._resumes = False

    def forward(self, *inputs: Tensor) -> Tensor:
        if self._resumes:
            self._hidden, *inputs = inputs
        return super().forward(*inputs)

    def to(self, device: torch.device) -> "BackboneTower":
        """On that device, but for a backbone that is spread over several: that stays where it is."""
        if not is_spread(self.backbone):
            return super().to(device)
        self.projection.to(device)
        return self

    def train(self, mode: bool = True) -> "BackboneTower":
        super().train(mode)
        if not self.backbone_dropout:
            self.backbone.eval()
            for module in self.backbone.modules():
                if getattr(module, "follows_mode", False):
                    module.train(mode)
        return self

    def read(self, *inputs: Tensor) -> Tensor:
        return self.reader.read(self.read_out, *inputs)[:, self.states]

    @property
    def reader(self) -> "StateReader":
        """Reads all of its states; blocks that are inserted or wrapped later are not seen."""
        self._reader = self._reader or StateReader(self)
        return self._reader

    def pool(self, hidden: Tensor, *inputs: Tensor) -> Tensor:
        """Pooling of a layer's output over the tokens of N items: [N, T, D] and the items' inputs -> [N, D]."""
        return hidden[:, 0]

    def token_states(self, block: int, *inputs: Tensor) -> Tensor:
        """The inputs of N items -> what that block (from 0) is given of them: float32 [N, T, D], without gradient."""

        def leave(module: nn.Module, arguments: tuple, options: dict) -> None:
            raise _Reached(arguments[0] if arguments else options["hidden_states"])

        hook = blocks_of(self.backbone)[block].register_forward_pre_hook(leave, prepend=True, with_kwargs=True)
        try:
            with torch.no_grad():
                self.read_out(*inputs)
        except _Reached as reached:
            return reached.hidden.float()
        finally:
            hook.remove()
        raise RuntimeError(f"block {block} of the {self.modality} encoder did not run")

    def resume_at(self, block: int, besides: tuple | None) -> None:
        """From now on `forward` takes one input more, in front: what `token_states` gives. The blocks below are gone.

        What stands in front of the blocks still runs, for the masks that the blocks are given besides; of inputs that
        have none one item is enough.

        Args:
            besides: what a block below gives out beside its hidden states, in a tuple; None where it gives no tuple.
        """
        blocks = blocks_of(self.backbone)
        for below in blocks[:block]:
            # A backbone may ask its blocks for more than their output: the module stays, empty.
            for name in [*below._modules, *below._parameters, *below._buffers]:
                delattr(below, name)
            below.forward = partial(_passed_on, besides)
        blocks[block].register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True)
        self.input_count, self._resumes = self.input_count + 1, True

    def _enter(self, block: nn.Module, arguments: tuple, options: dict) -> tuple[tuple, dict]:
        hidden, self._hidden = self._hidden.float(), None
        return ((hidden, *arguments[1:]), options) if arguments else (arguments, options | {"hidden_states": hidden})


def running(towers: Iterable[Tower]) -> list[BackboneTower]:
    """Those that run a backbone."""
    return cast("list[BackboneTower]", [tower for tower in towers if tower.backbone is not None])


class _Reached(Exception):
    def __init__(self, hidden: Tensor):
        super().__init__()
        self.hidden = hidden


def _passed_on(besides: tuple | None, hidden_states: Tensor, *arguments: Any, **options: Any) -> Tensor | tuple:
    return hidden_states if besides is None else (hidden_states, *besides)


class StateReader:
    """Reads what a backbone's blocks pass on where an item is read.

    A block that several layers share (ALBERT) gives a state each time that it runs.
    """

    def __init__(self, tower: BackboneTower):
        # The tower holds its reader's hooks: a reference back would be a module within itself.
        self.pool, self.ends_in_output = tower.pool, tower.ends_in_output
        # None while nobody reads.
        self._states: list[Tensor] | None = None
        self._inputs: tuple[Tensor, ...] = ()
        blocks = blocks_of(tower.backbone)
        blocks[0].register_forward_pre_hook(self._first, with_kwargs=True)
        for block in blocks:
            block.register_forward_hook(self._next)

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
