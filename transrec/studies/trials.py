"""The trials of a search, which Optuna keeps in one SQLite file that processes share.

The settings of a trial, and the epoch at which it is stopped early, depend only on the search's seed, the trial's
number and the outcomes of earlier rounds. Workers and interruptions do not change them, because all trials of a round
are drawn once the previous round is over.
"""

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from transrec.errors import TransrecError, about_file, reason_of
from transrec.studies.space import Dimension

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

SIGNATURE = "searched"
REASON, REFITTED = "reason", "refitted"
SECONDS_FOR_OTHERS = 60
SECONDS_OF_A_MOMENT = 2
# Number of a method's trials that must be over before a trial can be stopped for being worse than their median.
TRIALS_BEFORE_PRUNING = 5
# A method is given up if this many trials have run and all have failed.
GIVE_UP_AFTER = 10


@dataclass(frozen=True)
class Rules:
    """The rules of a search, the same for all methods.

    Attributes:
        trials: number of trials per method; None: as many as fit into `hours`.
        hours: hours of training and validation per method; None: as many as `trials` take.
        together: number of trials in a round.
        prune_after: first epoch after which a trial may be stopped early; None: no trial is stopped early.
        seed: seed from which settings are drawn.
    """

    trials: int | None = 20
    hours: float | None = None
    together: int = 4
    prune_after: int | None = 3
    seed: int = 0

    @property
    def budget(self) -> str:
        """The budget as text."""
        parts = [f"{self.trials} trials"] if self.trials else []
        return " or ".join([*parts, *([f"{self.hours:g} hours of training and validation"] if self.hours else [])])


@dataclass(frozen=True)
class Outcome:
    """The outcome of a trial: its validation metric by epoch, and the best value if the trial is complete."""

    state: Literal["complete", "pruned", "failed"]
    epochs: Mapping[int, float] = field(default_factory=dict)
    value: float | None = None
    reason: str = ""


def load_optuna() -> Any:
    """Return the optuna module. Raises TransrecError if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise TransrecError("a search needs Optuna; install it with: pip install 'transrec[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextmanager
def _naming_file(path: Path) -> Iterator[None]:
    """Context in which errors of Optuna and SQLite become a TransrecError of one line that names the file."""
    optuna = load_optuna()
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with about_file(path):
            yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError, AssertionError, RuntimeError) as error:
        raise TransrecError(
            f"{path}: cannot be used as the file of a search's trials ({reason_of(error)}); make room, or give another "
            f"--out"
        ) from error


def open_storage(path: Path) -> Any:
    """Open the file of a search's trials, or create it. Raises TransrecError if the file holds something else."""
    with _naming_file(path):
        storages = load_optuna().storages
        waiting = {"connect_args": {"timeout": SECONDS_FOR_OTHERS}}
        return storages.RDBStorage(f"sqlite:///{path}", engine_kwargs=waiting)


class Trials:
    """The trials of one method.

    Args:
        storage: the result of `open_storage`.
        path: path of the storage's file.
        name: name of the method.
        space: the flags that are varied.
        default: the flags' values in a run without a search. The first trial takes those that the space contains.
        rules: the rules of the search.
    """

    def __init__(
        self, storage: Any, path: Path, name: str, space: Sequence[Dimension], default: Mapping[str, Any], rules: Rules
    ):
        self.path, self.name, self.default, self.rules = path, name, default, rules
        self.optuna = load_optuna()
        self.space = {dimension.flag: dimension for dimension in space}
        self.distributions = {dimension.flag: self._distribution(dimension) for dimension in space}
        self._all: list[FrozenTrial] = []
        self._pruned_at: dict[tuple[int, int], int | None] = {}
        self.refresh()
        with _naming_file(path):
            self._study = self.optuna.create_study(
                storage=storage, study_name=name, direction="maximize", load_if_exists=True
            )

    def _distribution(self, dimension: Dimension) -> Any:
        kinds = self.optuna.distributions
        if not dimension.is_range:
            return kinds.CategoricalDistribution(dimension.values)
        is_integer = all(isinstance(value, int) for value in dimension.values)
        kind = kinds.IntDistribution if is_integer else kinds.FloatDistribution
        return kind(*dimension.values, log=dimension.log)

    def check(self, signature: dict[str, Any]) -> None:
        """Raise TransrecError, naming the differences, if the file holds trials of another search of the method."""
        with _naming_file(self.path):
            earlier = self._study.user_attrs.get(SIGNATURE)
            if earlier is None:
                self._study.set_user_attr(SIGNATURE, signature)
                return
        if differences := [
            f"{part} {name} {_shown(now.get(name))} (was {_shown(before.get(name))})"
            for part in signature
            for now, before in [(signature[part], earlier.get(part, {}))]
            for name in dict.fromkeys([*now, *before])
            if now.get(name) != before.get(name)
        ]:
            raise TransrecError(
                f"{self.path}: holds another search of {self.name}: {', '.join(differences)}; give another --out, or "
                f"the settings of that search"
            )

    @property
    def all(self) -> list["FrozenTrial"]:
        """All trials by number. They are read again after each change by this process and after SECONDS_OF_A_MOMENT."""
        if time.monotonic() > self._read + SECONDS_OF_A_MOMENT:
            with _naming_file(self.path):
                self._all = sorted(self._study.get_trials(deepcopy=False), key=lambda trial: trial.number)
            self._read = time.monotonic()
        return self._all

    def refresh(self) -> None:
        """Make `all` read the file again, including changes by other processes."""
        self._read = -math.inf

    @property
    def refitted(self) -> int | None:
        """Number of the trial with whose settings the test targets were ranked; None if they have not been ranked."""
        with _naming_file(self.path):
            return self._study.user_attrs.get(REFITTED)

    def mark_refitted(self, number: int) -> None:
        """Note that the test targets are ranked with the settings of a trial."""
        with _naming_file(self.path):
            self._study.set_user_attr(REFITTED, number)

    def is_finished(self, number: int) -> bool:
        """Return whether any process has recorded the outcome of a trial."""
        self.refresh()
        return self.all[number].state.is_finished()

    @property
    def is_complete(self) -> bool:
        """Whether the budget's number of trials is reached, or the method was given up."""
        trials = self.all
        # Trials that fail at once take nothing from a budget of hours, so it would never be used up.
        last = trials[-GIVE_UP_AFTER:] if self.rules.trials is None else trials
        given_up = len(trials) >= GIVE_UP_AFTER and all(trial.state.name == "FAIL" for trial in last)
        return given_up or (self.rules.trials is not None and len(trials) >= self.rules.trials)

    @property
    def is_waiting(self) -> bool:
        """Whether no trial can be added now, because the budget is used up or earlier rounds are not over."""
        trials = self.all
        round_start = len(trials) - len(trials) % self.rules.together
        return self.is_complete or not all(trial.state.is_finished() for trial in trials[:round_start])

    def extend(self) -> None:
        """Add the trials of the next round, or the missing ones of the last, once all earlier rounds are over."""
        if self.is_waiting:
            return
        trials, together = self.all, self.rules.together
        round_start = len(trials) - len(trials) % together
        for number in range(len(trials), min(round_start + together, self.rules.trials or round_start + together)):
            state = self.optuna.trial.TrialState.RUNNING
            trial = self.optuna.trial.create_trial(
                state=state, params=self.proposed(number, trials), distributions=self.distributions
            )
            with _naming_file(self.path):
                self._study.add_trial(trial)
        self.refresh()

    def proposed(self, number: int, trials: Sequence["FrozenTrial"]) -> dict[str, Any]:
        """Return the settings for the trial with a number, drawn by TPE from the trials of earlier rounds."""
        params = self._study_before(number, trials).ask(self.distributions).params
        if number == 0:
            params |= {flag: v for flag, v in self.default.items() if flag in self.space and self.space[flag].has(v)}
        return params

    def _study_before(self, number: int, trials: Sequence["FrozenTrial"]) -> Any:
        """Return an in-memory study of the rounds before trial `number`, with that trial's sampler and pruner."""
        name = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4], "little")
        seed = int(np.random.SeedSequence([self.rules.seed, name, number]).generate_state(1)[0])
        pruners = self.optuna.pruners
        pruner = pruners.NopPruner()
        if self.rules.prune_after is not None:
            pruner = pruners.MedianPruner(TRIALS_BEFORE_PRUNING, n_warmup_steps=self.rules.prune_after)
        sampler = self.optuna.samplers.TPESampler(seed=seed)
        study = self.optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
        study.add_trials(trials[: number - number % self.rules.together])
        return study

    def pruned_at(self, number: int, epochs: Mapping[int, float]) -> int | None:
        """Return the first epoch at which a trial is worse than the median of earlier rounds' trials, else None."""
        if self.rules.prune_after is None or max(epochs, default=0) < self.rules.prune_after:
            return None
        # The result can be cached: finished epochs and earlier rounds do not change.
        if (key := (number, len(epochs))) not in self._pruned_at:
            self._pruned_at[key] = self._first_pruned_epoch(number, epochs)
        return self._pruned_at[key]

    def _first_pruned_epoch(self, number: int, epochs: Mapping[int, float]) -> int | None:
        trial = self._study_before(number, self.all).ask()
        for epoch in sorted(epochs):
            trial.report(epochs[epoch], epoch)
            if trial.should_prune():
                return epoch
        return None

    def record(self, number: int, outcome: Outcome) -> None:
        """Record the outcome of a trial."""
        state = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}[outcome.state]
        with _naming_file(self.path):
            known = self.all[number]
            trial = self.optuna.trial.Trial(self._study, known._trial_id)
            for epoch in sorted(outcome.epochs.keys() - known.intermediate_values.keys()):
                trial.report(outcome.epochs[epoch], epoch)
            if outcome.reason:
                trial.set_user_attr(REASON, outcome.reason)
            self._study.tell(number, outcome.value, self.optuna.trial.TrialState[state])
        self.refresh()

    @property
    def best(self) -> "FrozenTrial | None":
        """The complete trial with the best validation metric, the first one on ties; None if no trial is complete."""
        complete = [trial for trial in self.all if trial.state.name == "COMPLETE"]
        return max(complete, key=lambda trial: trial.value, default=None)

    def importances(self) -> dict[str, float]:
        """Return how much of the validation metric's variance each flag explains; {} while trials are too few."""
        if len({trial.value for trial in self.all if trial.state.name == "COMPLETE"}) < 2 or len(self.space) < 2:
            return {}
        with _naming_file(self.path):
            return self.optuna.importance.get_param_importances(self._study)


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
