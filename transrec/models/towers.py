"""Towers, which read one modality of an item as states or as one vector.

A tower does not depend on where its inputs come from.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from transrec.models.backbone import blocks_of, skip_unread_tokens
from transrec.models.quantised import is_quantised
from transrec.models.spread import is_spread


def make_projection(width: int, embedding_dim: int) -> nn.Linear:
    """Return a Linear(D, d) with Xavier-normal weights and zero biases."""
    projection = nn.Linear(width, embedding_dim)
    nn.init.xavier_normal_(projection.weight)
    nn.init.zeros_(projection.bias)
    return projection


class Tower(nn.Module):
    """Base of all towers. A single tower is an item encoder: one vector per item -> Linear(D, d) -> GELU.

    Attributes:
        modality: the name of the modality that the tower reads.
        input_count: the number of input tensors.
        embedding_dim: d.
        width: D.
        depth: the number of layers of the backbone, whose states are 0 to depth; None if no backbone is involved.
        states: the numbers of the K states that `read` returns.
        stateless_noun: what has no states, as a plural noun for messages, if `states` is empty.
        projection: Linear(D, d); None once a method has taken it over.
        backbone: the backbone that the tower runs; None if there is none.
        backbone_dropout: whether the backbone's own dropout is active in training mode. If not, the backbone stays in
            eval mode even while the tower trains, except for inserted modules that set `follows_mode`.
    """

    modality: str
    input_count: int = 1
    stateless_noun: str = ""
    depth: int | None = None
    backbone_dropout: bool = True

    def __init__(self, embedding_dim: int, width: int, states: Sequence[int]):
        super().__init__()
        self.embedding_dim, self.width, self.states = embedding_dim, width, list(states)
        self.backbone: nn.Module | None = None
        self.projection: nn.Linear | None = None

    @property
    def towers(self) -> "list[Tower]":
        """This tower alone, in a list."""
        return [self]

    @property
    def trains_inside(self) -> bool:
        """True if any parameter inside the tower's backbone trains."""
        return self.backbone is not None and any(p.requires_grad for p in self.backbone.parameters())

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return item embeddings [N, d] for the inputs of N items."""
        return F.gelu(self.projection(self.read_out(*inputs)))

    def read_out(self, *inputs: Tensor) -> Tensor:
        """Return one vector per item, [N, D], for the inputs of N items."""
        raise NotImplementedError

    def read(self, *inputs: Tensor) -> Tensor:
        """Return the chosen states [N, K, D], without gradient, for the inputs of N items."""
        raise NotImplementedError


class StoredTower(Tower):
    """Reads precomputed states, float16 or float32 [N, K, D], already chosen. The last state represents the item.

    Args:
        states: K, or for states of a backbone the number that there are to choose from.
        depth: the number of layers of the backbone that computed the states, if a backbone did.
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
    """Runs a backbone. State 0 is the input of the first block; state k is the output of block k.

    Attributes:
        ends_in_output: whether the last state is the output of `read_out` instead of that of the last block.
        constants: names of the backbone's parameters that never train (such as MAE's sinusoidal positions).
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
        self._skips: list[RemovableHandle] = []
        # The input of the first block that runs, until that block receives it.
        self._hidden: Tensor | None = None
        self._resumes = False

    def forward(self, *inputs: Tensor) -> Tensor:
        if self._resumes:
            self._hidden, *inputs = inputs
        return super().forward(*inputs)

    def to(self, device: torch.device) -> "BackboneTower":
        """Move the tower to a device; a backbone that is spread over several devices stays where it is."""
        if not is_spread(self.backbone):
            return super().to(device)
        self.projection.to(device)
        return self

    def train(self, mode: bool = True) -> "BackboneTower":
        if self.backbone_dropout:
            return super().train(mode)
        self.training = mode
        # The backbone never enters training mode, which layers with quantised weights may refuse.
        for module in self.children():
            module.train(mode and module is not self.backbone)
        for module in self.backbone.modules():
            if getattr(module, "follows_mode", False):
                module.train(mode)
        return self

    def read(self, *inputs: Tensor) -> Tensor:
        return self.reader.read(self.read_out, *inputs)[:, self.states]

    @property
    def example(self) -> tuple[Tensor, ...] | None:
        """The inputs of two items, if an item is read at the first token of the last block alone; else None."""
        return None

    def skip_unread_tokens(self) -> None:
        """Leave out what the last block computes for tokens at which no item is read, if there are any.

        Nothing is left out of backbones that then read an example otherwise, nor of quantised ones.
        """
        if self.example is None or is_quantised(self.backbone) or is_spread(self.backbone):
            return
        if any(parameter.is_meta for parameter in self.backbone.parameters()):
            return
        mode = self.backbone.training
        self.backbone.eval()
        try:
            expected = self._read_example()
            self._skips = skip_unread_tokens(self.backbone)
            torch.testing.assert_close(self._read_example(), expected, rtol=1e-3, atol=1e-4)
        # Any error of a model that is not built as expected: it runs whole.
        except Exception:
            self.read_all_tokens()
        finally:
            self.backbone.train(mode)

    def read_all_tokens(self) -> None:
        """Undo `skip_unread_tokens`, for methods that read other tokens."""
        for skip in self._skips:
            skip.remove()
        self._skips = []

    def _read_example(self) -> Tensor:
        # MAE draws which patches it masks.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.read_out(*self.example)

    @property
    def reader(self) -> "StateReader":
        """Reader of all states of the backbone; it does not see blocks that are inserted or wrapped later."""
        self._reader = self._reader or StateReader(self)
        return self._reader

    def pool(self, hidden: Tensor, *inputs: Tensor) -> Tensor:
        """Pool a layer's output over the tokens of N items: [N, T, D] and the items' inputs -> [N, D]."""
        return hidden[:, 0]

    def token_states(self, block: int, *inputs: Tensor) -> Tensor:
        """Return the input of a block (from 0) for the inputs of N items: float32 [N, T, D], without gradient."""

        def leave(module: nn.Module, arguments: tuple, options: dict) -> None:
            raise _BlockReached(arguments[0] if arguments else options["hidden_states"])

        hook = blocks_of(self.backbone)[block].register_forward_pre_hook(leave, prepend=True, with_kwargs=True)
        try:
            with torch.no_grad():
                self.read_out(*inputs)
        except _BlockReached as reached:
            return reached.hidden.float()
        finally:
            hook.remove()
        raise RuntimeError(f"block {block} of the {self.modality} encoder did not run")

    def resume_at(self, block: int, extra_outputs: tuple | None) -> None:
        """Make `forward` take the output of `token_states` as a new first input, and remove the blocks below `block`.

        The layers before the blocks still run, because they compute the masks that blocks receive. If there are no
        masks, inputs of a single item are enough.

        Args:
            extra_outputs: the values that a removed block returned in a tuple after its hidden states; None if it
                returned no tuple.
        """
        blocks = blocks_of(self.backbone)
        for below in blocks[:block]:
            # The emptied module stays, because a backbone may read attributes of its blocks.
            for name in [*below._modules, *below._parameters, *below._buffers]:
                delattr(below, name)
            below.forward = partial(_pass_through, extra_outputs)
        blocks[block].register_forward_pre_hook(self._replace_input, prepend=True, with_kwargs=True)
        self.input_count, self._resumes = self.input_count + 1, True

    def _replace_input(self, block: nn.Module, arguments: tuple, options: dict) -> tuple[tuple, dict]:
        hidden, self._hidden = self._hidden.float(), None
        return ((hidden, *arguments[1:]), options) if arguments else (arguments, options | {"hidden_states": hidden})


def backbone_towers(towers: Iterable[Tower]) -> list[BackboneTower]:
    """Return the towers that run a backbone."""
    return cast("list[BackboneTower]", [tower for tower in towers if tower.backbone is not None])


class _BlockReached(Exception):
    def __init__(self, hidden: Tensor):
        super().__init__()
        self.hidden = hidden


def _pass_through(
    extra_outputs: tuple | None, hidden_states: Tensor, *arguments: Any, **options: Any
) -> Tensor | tuple:
    return hidden_states if extra_outputs is None else (hidden_states, *extra_outputs)


class StateReader:
    """Reads the states of a backbone: what its blocks pass on, pooled as the tower pools an item.

    A block that several layers share (ALBERT) yields a state each time that it runs.
    """

    def __init__(self, tower: BackboneTower):
        # Keep no reference to the tower: it holds the reader's hooks, so it would be a module within itself.
        self.pool, self.ends_in_output = tower.pool, tower.ends_in_output
        # None unless `read` is running.
        self._states: list[Tensor] | None = None
        self._inputs: tuple[Tensor, ...] = ()
        blocks = blocks_of(tower.backbone)
        blocks[0].register_forward_pre_hook(self._record_input, with_kwargs=True)
        for block in blocks:
            block.register_forward_hook(self._record_output)

    def _record_input(self, block: nn.Module, arguments: tuple, options: dict) -> None:
        if self._states == []:
            self._states = [self.pool(arguments[0] if arguments else options["hidden_states"], *self._inputs)]

    def _record_output(self, block: nn.Module, arguments: tuple, output) -> None:
        if self._states is not None:
            self._states.append(self.pool(output[0] if isinstance(output, tuple) else output, *self._inputs))

    def read(self, read_out: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Run the tower's `read_out` on N items and return float32 states [N, 1 + blocks, D], without gradient."""
        self._inputs, self._states = inputs, []
        with torch.no_grad():
            output = read_out(*inputs)
            states = [*self._states[:-1], output] if self.ends_in_output else self._states
            self._states = None
            return torch.stack(states, dim=1).float()
