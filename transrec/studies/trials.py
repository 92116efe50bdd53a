"""The trials of a search, kept in one SQLite file by Optuna, which processes share.

Which settings a trial tries, and when it is stopped early, follow from the search's seed, the trial's number and what
came of the trials of earlier rounds alone. Neither workers nor interruptions change them: a round is drawn as a whole
once the one before it is over.
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
# Of a method, so many trials are over before one is stopped for being worse than their median.
TRIALS_BEFORE_PRUNING = 5
# A method whose first trials all fail, so many of them, is given up.
GIVE_UP_AFTER = 10


@dataclass(frozen=True)
class Rules:
    """By what every method is searched alike.

    Attributes:
        trials: how many are run; None: as many as fit into `hours`.
        hours: of training and validation; None: as many as `trials` take.
        together: trials of a round.
        prune_after: epochs that no trial is stopped before; None: none is stopped early.
        seed: of what is drawn.
    """

    trials: int | None = 20
    hours: float | None = None
    together: int = 4
    prune_after: int | None = 3
    seed: int = 0

    @property
    def told(self) -> str:
        """The budget, for people."""
        parts = [f"{self.trials} trials"] if self.trials else []
        return " or ".join([*parts, *([f"{self.hours:g} hours of training and validation"] if self.hours else [])])


@dataclass(frozen=True)
class Outcome:
    """What came of a trial: its validation metric by epoch, and the best one, where it went to its end."""

    state: Literal["complete", "pruned", "failed"]
    epochs: Mapping[int, float] = field(default_factory=dict)
    value: float | None = None
    reason: str = ""


def load_optuna() -> Any:
    """The library. Raises TransrecError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise TransrecError("a search needs Optuna; install it with: pip install 'transrec[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextmanager
def _told_about(path: Path) -> Iterator[None]:
    """Within, what Optuna and SQLite raise over the file is one line that names it."""
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
    """The file of a search's trials, made where there is none. Raises TransrecError where it is something else."""
    with _told_about(path):
        storages = load_optuna().storages
        waiting = {"connect_args": {"timeout": SECONDS_FOR_OTHERS}}
        return storages.RDBStorage(f"sqlite:///{path}", engine_kwargs=waiting)


class Trials:
    """The trials of one method.

    Args:
        storage: of `open_storage`.
        path: of that file.
        name: of the method.
        space: what is varied.
        default: values of a run that nobody searched for; the first trial takes them where the space has them.
    """

    def __init__(
        self, storage: Any, path: Path, name: str, space: Sequence[Dimension], default: Mapping[str, Any], rules: Rules
    ):
        self.path, self.name, self.default, self.rules = path, name, default, rules
        self.optuna = load_optuna()
        self.space = {each.flag: each for each in space}
        self.distributions = {each.flag: self._distribution(each) for each in space}
        self._all: list[FrozenTrial] = []
        self._pruned_at: dict[tuple[int, int], int | None] = {}
        self.refresh()
        with _told_about(path):
            self._kept = self.optuna.create_study(
                storage=storage, study_name=name, direction="maximize", load_if_exists=True
            )

    def _distribution(self, dimension: Dimension) -> Any:
        kinds = self.optuna.distributions
        if not dimension.is_range:
            return kinds.CategoricalDistribution(dimension.values)
        whole = all(isinstance(value, int) for value in dimension.values)
        kind = kinds.IntDistribution if whole else kinds.FloatDistribution
        return kind(*dimension.values, log=dimension.log)

    def check(self, signature: dict[str, Any]) -> None:
        """Raise TransrecError where the file holds trials of another search of the method, naming what differs."""
        with _told_about(self.path):
            kept = self._kept.user_attrs.get(SIGNATURE)
            if kept is None:
                self._kept.set_user_attr(SIGNATURE, signature)
                return
        if differences := [
            f"{part} {name} {_shown(now.get(name))} (was {_shown(before.get(name))})"
            for part in signature
            for now, before in [(signature[part], kept.get(part, {}))]
            for name in dict.fromkeys([*now, *before])
            if now.get(name) != before.get(name)
        ]:
            raise TransrecError(
                f"{self.path}: holds another search of {self.name}: {', '.join(differences)}; give another --out, or "
                f"the settings of that search"
            )

    @property
    def all(self) -> list["FrozenTrial"]:
        """In the order of their numbers, as they were a moment ago at most, and as this process last changed them."""
        if time.monotonic() > self._read + SECONDS_OF_A_MOMENT:
            with _told_about(self.path):
                self._all = sorted(self._kept.get_trials(deepcopy=False), key=lambda trial: trial.number)
            self._read = time.monotonic()
        return self._all

    def refresh(self) -> None:
        """Have `all` read what other processes have changed."""
        self._read = -math.inf

    @property
    def refitted(self) -> int | None:
        """The trial whose settings the test targets were ranked at; None while they have not been."""
        with _told_about(self.path):
            return self._kept.user_attrs.get(REFITTED)

    def refit(self, number: int) -> None:
        """Note that the test targets are ranked at the settings of a trial."""
        with _told_about(self.path):
            self._kept.set_user_attr(REFITTED, number)

    def is_finished(self, number: int) -> bool:
        """Whether it is known what came of a trial, from whatever process."""
        self.refresh()
        return self.all[number].state.is_finished()

    @property
    def is_complete(self) -> bool:
        """Whether there are as many as the budget has, or the method was given up."""
        trials = self.all
        failed = [trial for trial in trials if trial.state.name == "FAIL"]
        given_up = len(trials) >= GIVE_UP_AFTER and len(failed) == len(trials)
        return given_up or (self.rules.trials is not None and len(trials) >= self.rules.trials)

    @property
    def is_waiting(self) -> bool:
        """Whether no trial can be added now: the budget has no more, or earlier rounds are not over."""
        trials = self.all
        begun = len(trials) - len(trials) % self.rules.together
        return self.is_complete or not all(trial.state.is_finished() for trial in trials[:begun])

    def extend(self) -> None:
        """Add the trials of the next round, or what lacks of the last one, once all before them are over."""
        if self.is_waiting:
            return
        trials, together = self.all, self.rules.together
        begun = len(trials) - len(trials) % together
        for number in range(len(trials), min(begun + together, self.rules.trials or begun + together)):
            state = self.optuna.trial.TrialState.RUNNING
            made = self.optuna.trial.create_trial(
                state=state, params=self.proposed(number, trials), distributions=self.distributions
            )
            with _told_about(self.path):
                self._kept.add_trial(made)
        self.refresh()

    def proposed(self, number: int, trials: Sequence["FrozenTrial"]) -> dict[str, Any]:
        """What the trial of a number tries, given those before it: TPE over the trials of earlier rounds."""
        drawn = self._earlier(number, trials).ask(self.distributions).params
        if number == 0:
            drawn |= {flag: of for flag, of in self.default.items() if flag in self.space and self.space[flag].has(of)}
        return drawn

    def _earlier(self, number: int, trials: Sequence["FrozenTrial"]) -> Any:
        """The trials of the rounds before that of a number, in memory, with the sampler and pruner of that number."""
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
        """The first of the epochs at which a trial is worse than the median of those of earlier rounds; or None."""
        if self.rules.prune_after is None or max(epochs, default=0) < self.rules.prune_after:
            return None
        # Epochs that are over do not change, nor do earlier rounds.
        if (key := (number, len(epochs))) not in self._pruned_at:
            self._pruned_at[key] = self._judged(number, epochs)
        return self._pruned_at[key]

    def _judged(self, number: int, epochs: Mapping[int, float]) -> int | None:
        trial = self._earlier(number, self.all).ask()
        for epoch in sorted(epochs):
            trial.report(epochs[epoch], epoch)
            if trial.should_prune():
                return epoch
        return None

    def tell(self, number: int, outcome: Outcome) -> None:
        """Note what came of a trial."""
        state = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}[outcome.state]
        with _told_about(self.path):
            known = self.all[number]
            trial = self.optuna.trial.Trial(self._kept, known._trial_id)
            for epoch in sorted(outcome.epochs.keys() - known.intermediate_values.keys()):
                trial.report(outcome.epochs[epoch], epoch)
            if outcome.reason:
                trial.set_user_attr(REASON, outcome.reason)
            self._kept.tell(number, outcome.value, self.optuna.trial.TrialState[state])
        self.refresh()

    @property
    def best(self) -> "FrozenTrial | None":
        """Of those that went to their end the one with the best validation metric, the first of equals."""
        complete = [trial for trial in self.all if trial.state.name == "COMPLETE"]
        return max(complete, key=lambda trial: trial.value, default=None)

    def importances(self) -> dict[str, float]:
        """How much of the spread of the validation metric each flag explains; none while too few trials say it."""
        if len({trial.value for trial in self.all if trial.state.name == "COMPLETE"}) < 2 or len(self.space) < 2:
            return {}
        with _told_about(self.path):
            return self.optuna.importance.get_param_importances(self._kept)


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
