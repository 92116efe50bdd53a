"""Learning rate schedules by name: `constant`, `linear`, `cosine`, each with an optional warm-up."""

import math
from dataclasses import dataclass
from typing import ClassVar

from transrec.errors import TransrecError
from transrec.options import Options, flag
from transrec.registry import Registry


class Schedule:
    """Base class of all schedules. The constructor takes the values of the schedule's flags as keyword arguments.

    Attributes:
        Options: the dataclass of the schedule's flags.
        reads_steps: whether the factors depend on the total number of steps of a run. If so, --epochs affects the run's
            numbers and cannot be changed when the run is resumed.
    """

    Options: type[Options] = Options
    reads_steps: ClassVar[bool] = True

    def __call__(self, step: int, steps: int) -> float:
        """Return the factor for the learning rates of all groups, which must depend on these arguments alone.

        Args:
            step: the optimiser step, counted from 0 over all epochs.
            steps: the total number of steps if early stopping does not end the run.
        """
        raise NotImplementedError


SCHEDULES: Registry[Schedule] = Registry("schedule", Schedule, __name__)
register = SCHEDULES.register


@dataclass(frozen=True)
class WarmupOptions(Options):
    _minimum: ClassVar[dict[str, float]] = {"warmup_steps": 0}

    warmup_steps: int = flag(0, "Number of steps over which the learning rates rise linearly to their full values.")


@register("constant")
class Constant(Schedule):
    """Full learning rates after the warm-up."""

    Options = WarmupOptions
    reads_steps = False

    def __init__(self, warmup_steps: int = 0):
        self.warmup_steps = warmup_steps

    def __call__(self, step: int, steps: int) -> float:
        return (step + 1) / self.warmup_steps if step < self.warmup_steps else 1.0


@dataclass(frozen=True)
class DecayOptions(WarmupOptions):
    warmup_share: float = flag(0.0, "The length of the warm-up as a share of all steps, instead of --warmup_steps.")

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.warmup_share < 1:
            raise TransrecError(f"--warmup_share {self.warmup_share}: must be at least 0 and below 1")
        if self.warmup_share and self.warmup_steps:
            raise TransrecError("--warmup_share and --warmup_steps say the same thing twice; leave one out")


class _Decay(Schedule):
    """Decays from full learning rates after the warm-up towards zero, which the step after the last would reach."""

    Options = DecayOptions

    def __init__(self, warmup_steps: int = 0, warmup_share: float = 0.0):
        self.warmup_steps, self.warmup_share = warmup_steps, warmup_share

    def __call__(self, step: int, steps: int) -> float:
        warmup = self.warmup_steps or math.floor(self.warmup_share * steps)
        if step < warmup:
            return (step + 1) / warmup
        return self.decay((step - warmup) / (steps - warmup))

    def decay(self, done: float) -> float:
        """Return the factor when a share `done` of the steps after the warm-up has been taken."""
        raise NotImplementedError


@register("linear")
class Linear(_Decay):
    """Linear decay, as BERT is fine-tuned (Devlin et al., NAACL 2019)."""

    def decay(self, done: float) -> float:
        return 1 - done


@register("cosine")
class Cosine(_Decay):
    """Cosine decay over half a period (Loshchilov and Hutter, ICLR 2017, without restarts)."""

    def decay(self, done: float) -> float:
        return (1 + math.cos(math.pi * done)) / 2
