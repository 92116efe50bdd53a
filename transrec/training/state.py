"""What a run saves so that it can be resumed: how far it is, and the tensors of its optimiser."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transrec.errors import TransrecError
from transrec.training import checkpoint
from transrec.training.sharding import part_of

# In front of the validation metrics in an epoch's line.
VALIDATION = "validation "


@dataclass
class State:
    """All that is needed to go on, besides tensors.

    Attributes:
        epoch, step: the next step to take (epochs count from 1, steps from 0).
        loss_sum: sum of the losses of this epoch's steps so far.
        seconds: spent in this epoch's training steps so far.
        best_epoch, best_metrics: of the best validation so far.
        epochs: one line of metrics for each finished epoch.
        finished: training ended, by the last epoch or by early stopping.
    """

    epoch: int = 1
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    best_epoch: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False

    @classmethod
    def from_description(cls, path: Path, description: checkpoint.Description) -> "State":
        """The state that the description of a checkpoint holds. Raises TransrecError when it makes no sense."""
        try:
            if not isinstance(description.state, dict):
                raise TypeError(f"state is {description.state!r}")
            state = cls(**description.state)
            whole = (state.epoch, state.step, state.best_epoch)
            if not all(type(number) is int and number >= 0 for number in whole):
                raise ValueError(f"epoch, step and best_epoch are {whole}")
            # Every evaluated epoch has a line, and the best is one of them.
            if state.epoch != len(state.epochs) + 1 or bool(state.best_epoch) != bool(state.epochs):
                raise ValueError(f"epoch {state.epoch}, best epoch {state.best_epoch}, {len(state.epochs)} metrics")
            if state.epochs and state.best_metrics != _validation(state.epochs[state.best_epoch - 1]):
                raise ValueError(f"best_metrics are not those of epoch {state.best_epoch}")
            if not math.isfinite(state.loss_sum + state.seconds):
                raise ValueError(f"loss_sum {state.loss_sum}, seconds {state.seconds}")
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise checkpoint.damaged(path, error) from error
        return state

    def position(self, steps: int) -> str:
        """Where it is, for people, in epochs of so many steps."""
        return f"epoch {self.epoch}, step {self.step} of {steps}" if self.step else f"the end of epoch {self.epoch - 1}"


def _validation(epoch: dict[str, Any]) -> dict[str, float]:
    """The validation metrics in an epoch's line."""
    return {name.removeprefix(VALIDATION): value for name, value in epoch.items() if name.startswith(VALIDATION)}


def optimizer_tensors(optimizer: torch.optim.Optimizer, trained: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimiser's state of each parameter, as `optimizer.KEY.NAME`."""
    return {
        f"optimizer.{key}.{name}": value
        for name, parameter in trained.items()
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    state_like: Callable[[Tensor], dict[str, Tensor]],
    trained: dict[str, nn.Parameter],
    path: Path,
    tensors: dict[str, Tensor],
) -> None:
    """Restore the optimiser from the tensors of `optimizer_tensors`, read from the checkpoint at `path`.

    Args:
        state_like: what the optimiser keeps of a parameter (transrec.training.optimizers).
        trained: the parameters by name, in the order in which the optimiser was given them.

    Raises TransrecError for a tensor that is missing, or of another shape or type than its parameter calls for.
    """
    saved = optimizer.state_dict()
    for index, (name, parameter) in enumerate(trained.items()):
        wanted = {f"optimizer.{key}.{name}": like for key, like in state_like(parameter).items()}
        found = {full: tensors[full] for full in wanted if full in tensors}
        # A parameter that has had no gradient yet has no state at all.
        if found and (missing := wanted.keys() - found.keys()):
            raise TransrecError(f"{path}: lacks {min(missing)}; it is damaged: put a whole copy back")
        checkpoint.check_shapes(path, found, wanted)
        saved["state"][index] = {full.split(".")[1]: part_of(tensor, wanted[full]) for full, tensor in found.items()}
    optimizer.load_state_dict(saved)
