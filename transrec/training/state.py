"""The state that a run saves in order to be resumed: its progress and the tensors of its optimiser."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transrec.errors import TransrecError
from transrec.training import checkpoint
from transrec.training.sharding import split_like

# Prefix of the validation metrics in an epoch's line.
VALIDATION = "validation "


@dataclass
class State:
    """Everything needed to continue training, except tensors.

    Attributes:
        epoch, step: the next step to take (epochs count from 1, steps from 0).
        loss_sum: sum of the losses of this epoch's steps so far.
        seconds: seconds spent in this epoch's training steps so far.
        best_epoch, best_metrics: epoch and metrics of the best validation so far.
        epochs: one line of metrics for each finished epoch.
        finished: whether training has ended, after the last epoch or by early stopping.
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
        """Return the state in the description of a checkpoint. Raises TransrecError if the state is inconsistent."""
        try:
            if not isinstance(description.state, dict):
                raise TypeError(f"state is {description.state!r}")
            state = cls(**description.state)
            counts = (state.epoch, state.step, state.best_epoch)
            if not all(type(number) is int and number >= 0 for number in counts):
                raise ValueError(f"epoch, step and best_epoch are {counts}")
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
        """Return a readable description of the run's position, given the number of steps per epoch."""
        return f"epoch {self.epoch}, step {self.step} of {steps}" if self.step else f"the end of epoch {self.epoch - 1}"


def _validation(epoch: dict[str, Any]) -> dict[str, float]:
    """Return the validation metrics in an epoch's line."""
    return {name.removeprefix(VALIDATION): value for name, value in epoch.items() if name.startswith(VALIDATION)}


def optimizer_tensors(optimizer: torch.optim.Optimizer, trained: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the optimiser's state tensors of each parameter, named `optimizer.KEY.NAME`."""
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
        state_like: `Optimizer.state_like` (transrec.training.optimizers).
        trained: the parameters by name, in the optimiser's order.

    Raises TransrecError if a tensor is missing, or if its shape or dtype does not fit its parameter.
    """
    saved = optimizer.state_dict()
    for index, (name, parameter) in enumerate(trained.items()):
        wanted = {f"optimizer.{key}.{name}": like for key, like in state_like(parameter).items()}
        present = {full: tensors[full] for full in wanted if full in tensors}
        # A parameter that has never had a gradient has no state.
        if present and (missing := wanted.keys() - present.keys()):
            raise TransrecError(f"{path}: lacks {min(missing)}; it is damaged: put a whole copy back")
        checkpoint.check_shapes(path, present, wanted)
        saved["state"][index] = {
            full.split(".")[1]: split_like(tensor, wanted[full]) for full, tensor in present.items()
        }
    optimizer.load_state_dict(saved)
