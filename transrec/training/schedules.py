"""Schedules of the learning rates by name: `constant`, `linear`, `cosine`, each with a warm-up if asked for."""

import math
from dataclasses import dataclass
from typing import ClassVar

from transrec.errors import TransrecError
from transrec.options import Options, flag
from transrec.registry import Registry


class Schedule:
    """Base of all schedules, made of the values of its flags by their names.

    Attributes:
        Options: the dataclass of its flags.
        reads_steps: whether a factor depends on how many steps a run takes in all: --epochs then decides its numbers
            too, and cannot be changed when it is resumed.
    """

    Options: type[Options] = Options
    reads_steps: ClassVar[bool] = True

    def __call__(self, step: int, steps: int) -> float:
        """What the learning rate of every group is multiplied by; a function of these numbers and nothing else.

        Args:
            step: the optimiser step, counted from 0 over all epochs.
            steps: how many there are if no epoch is spared by early stopping.
        """
        raise NotImplementedError


SCHEDULES: Registry[Schedule] = Registry("schedule", Schedule, __name__)
register = SCHEDULES.register


@dataclass(frozen=True)
class WarmupOptions(Options):
    _minimum: ClassVar[dict[str, float]] = {"warmup_steps": 0}

    warmup_steps: int = flag(0, "Steps in which the learning rates rise evenly to their full values.")


@register("constant")
class Constant(Schedule):
    """Full learning rates behind the warm-up."""

    Options = WarmupOptions
    reads_steps = False

    def __init__(self, warmup_steps: int = 0):
        self.warmup_steps = warmup_steps

    def __call__(self, step: int, steps: int) -> float:
        return (step + 1) / self.warmup_steps if step < self.warmup_steps else 1.0


@dataclass(frozen=True)
class DecayOptions(WarmupOptions):
    warmup_share: float = flag(0.0, "The warm-up as a share of all steps, in place of --warmup_steps.")

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.warmup_share < 1:
            raise TransrecError(f"--warmup_share {self.warmup_share}: must be at least 0 and below 1")
        if self.warmup_share and self.warmup_steps:
            raise TransrecError("--warmup_share and --warmup_steps say the same thing twice; leave one out")


class _Decay(Schedule):
    """From full learning rates behind the warm-up towards zero, which the step after the last would have."""

    Options = DecayOptions

    def __init__(self, warmup_steps: int = 0, warmup_share: float = 0.0):
        self.warmup_steps, self.warmup_share = warmup_steps, warmup_share

    def __call__(self, step: int, steps: int) -> float:
        warmup = self.warmup_steps or math.floor(self.warmup_share * steps)
        if step < warmup:
            return (step + 1) / warmup
        return self.decay((step - warmup) / (steps - warmup))

    def decay(self, done: float) -> float:
        """The factor when a share `done` of the steps behind the warm-up is over."""
        raise NotImplementedError


@register("linear")
class Linear(_Decay):
    """Straight down, as BERT is fine-tuned (Devlin et al., NAACL 2019)."""

    def decay(self, done: float) -> float:
        return 1 - done


@register("cosine")
class Cosine(_Decay):
    """Half a cosine down (Loshchilov and Hutter, ICLR 2017, without restarts)."""

    def decay(self, done: float) -> float:
        return (1 + math.cos(math.pi * done)) / 2
