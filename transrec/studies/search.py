"""A search: trials of every method with the same budget, compared by validation metrics; the best settings as presets.

A trial is a run of scripts/train.py that does not rank the test targets. This module contains the runs, their outcomes
and the tables; everything random about a search is in `trials`. The test targets are ranked once, by a study over seeds
with the best settings of each method (`Search.refit`), after which no trial is added.
"""

import json
import re
import shutil
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transrec import presets
from transrec.errors import TransrecError, about_file, printable
from transrec.locks import Lock
from transrec.models.objectives import OBJECTIVES
from transrec.models.user_encoders import USER_ENCODERS
from transrec.paths import write_text
from transrec.reports.search import draw_history, draw_importances, search_tables
from transrec.reports.tables import read_result
from transrec.studies.grid import Axis, Grid
from transrec.studies.space import Dimension, Spaces, default_space, dimension
from transrec.studies.study import Job, Study
from transrec.studies.trials import REASON, Outcome, Rules, Trials, open_storage
from transrec.training.optimizers import OPTIMIZERS
from transrec.training.schedules import SCHEDULES
from transrec.training.state import VALIDATION
from transrec.untrusted import parse_json, read_json, read_regular

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

# Number of times that a trial is started if its process is killed, for instance for lack of memory.
TRIES = 3
METRICS_BYTES = 2**26
LONGEST_REASON = 300
# A run with an exit status above this was ended by a signal.
SIGNALLED = 128
# Kinds of components whose flags the file of best settings contains, in addition to the method's own flags.
PRESET_KINDS = (USER_ENCODERS, OBJECTIVES, OPTIMIZERS, SCHEDULES)
ERROR = re.compile(r"error: (.*)")
BEST = "best.json"


@dataclass(frozen=True)
class ListedGrid(Grid):
    """A grid whose points are listed explicitly instead of combining all values."""

    listed: tuple[tuple[str, ...], ...] = ()

    def points(self) -> list[dict[str, str]]:
        return [dict(zip((axis.name for axis in self.axes), values, strict=True)) for values in self.listed]


def method_grid(methods: list[str], modality: str) -> ListedGrid:
    """Return the grid of methods named as METHOD, METHOD:VARIANT or METHOD@MODALITY, by default over `modality`.

    Raises TransrecError if a method is named twice over the same modality.
    """
    rows = []
    for name in methods:
        method, _, tower = name.partition("@")
        rows.append((tower or modality, method))
    plain = [(tower, method.partition(":")[0]) for tower, method in rows]
    if twice := [method for (tower, method) in plain if plain.count((tower, method)) > 1]:
        raise TransrecError(f"--method {' '.join(methods)}: names {twice[0]} twice over the same items")
    towers, names = (tuple(dict.fromkeys(row[number] for row in rows)) for number in (0, 1))
    axes = Axis("item_tower", towers, ("item_tower",)), Axis("method", names, ("method",))
    return ListedGrid(axes, listed=tuple(rows))


@dataclass(frozen=True)
class Trial(Job):
    """The run of a trial."""

    search: "MethodSearch" = field(kw_only=True, compare=False, repr=False)
    number: int = field(kw_only=True)

    @property
    def is_done(self) -> bool:
        return self.search.trials.is_finished(self.number)

    @property
    def is_wanted(self) -> bool:
        return not self.search.is_spent

    @property
    def may_stop(self) -> bool:
        return self.search.is_spent or self.search.trials.pruned_at(self.number, self.epochs) is not None

    @property
    def summary(self) -> str:
        trial = self.search.trials.all[self.number]
        if trial.state.name == "PRUNED":
            return f"stopped early after epoch {max(trial.intermediate_values)}"
        return f"validation {self.search.select_by} {trial.value:.4f}"

    @property
    def epochs(self) -> dict[int, float]:
        """The validation metric of each finished epoch."""
        name = f"{VALIDATION}{self.search.select_by}"
        return {line["epoch"]: line[name] for line in self.search.lines(self.folder)}

    def outcome(self) -> Outcome | None:
        """Return the outcome according to the trial's folder; None while the trial has not ended."""
        epochs = self.epochs
        pruned = self.search.trials.pruned_at(self.number, epochs)
        if pruned is not None:
            return Outcome("pruned", {epoch: value for epoch, value in epochs.items() if epoch <= pruned})
        try:
            result = read_result(self.folder, tested=False)
        except TransrecError:
            return None
        return Outcome("complete", epochs, result["validation"][self.search.select_by])

    def end(self, status: int, stopped: bool) -> bool | None:
        outcome = self.outcome()
        if outcome and outcome.state == "complete" and status:
            # The folder may hold the result of other settings, which the run refused to continue from.
            outcome = None
        if outcome is None and (stopped or self.search.is_spent):
            return None
        killed = status < 0 or status > SIGNALLED
        if outcome is None and killed and self.search.count_kill(self.number) < TRIES:
            return None
        outcome = outcome or Outcome("failed", self.epochs, reason=self._reason(status))
        self.search.trials.record(self.number, outcome)
        if outcome.state != "failed":
            # Settings, log and metrics are kept. Anyone who wants the weights can train them again.
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        return outcome.state != "failed"

    def _reason(self, status: int) -> str:
        """Return the run's last error message, or the last line of its log."""
        lines = self.search.log_of(self).read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [match[1] for line in lines if (match := ERROR.match(line))]
        return printable((errors or lines or [""])[-1])[:LONGEST_REASON] or f"left with status {status}"


class MethodSearch:
    """The search of one method.

    Args:
        out: the folder of the search.
        study: the study with one row for the method, which the trials vary.
        base: the run of that row.
        spaces: ranges and choices that override those of presets.
        rules: the rules of the search.

    Attributes:
        name: name of the method and of the modality of its items.
        settings: settings of a run without a search.
        space: the flags that are varied.
        trials: the trials in the folder of the search, available after `open`.
    """

    trials: Trials

    def __init__(self, out: Path, study: Study, base: Job, spaces: Spaces, rules: Rules):
        self.out, self.study, self.base, self.rules = out, study, base, rules
        self.name = re.sub(r"[^\w.-]", "-", base.name.removesuffix(f"-seed{rules.seed}"))
        self.settings = study.settings_of(base.flags, self.name)
        self.method, self.select_by = self.settings.method, self.settings.training.select_by
        self.modality = presets.modality_of(self.settings.model.modality_names)
        self.space = self._space(spaces)
        self._kills: dict[int, int] = {}
        self._settings: dict[int, dict[str, Any]] = {}
        self._lines: dict[Path, tuple[int, list[dict[str, Any]]]] = {}

    def open(self, storage: Any) -> None:
        """Read the method's trials.

        Raises TransrecError if they belong to another search, or if more trials would be added after the refit.
        """
        path = self.out / "search.db"
        self.trials = Trials(storage, path, self.name, self.space, self.settings.as_dict(), self.rules)
        self.trials.check(self.signature)
        if not self.trials.all and self.folder(0).exists():
            raise TransrecError(
                f"{self.folder(0)}: a trial of another search, whose {path.name} is gone; remove "
                f"{self.folder(0).parent}, or give another --out"
            )
        if self.trials.refitted is not None and not (self.trials.is_complete or self.is_spent):
            raise TransrecError(
                f"{self.name}: its test targets were ranked after {len(self.trials.all)} trials, and more trials "
                f"would choose by the test set. Give the same budget, or another --out"
            )

    def _space(self, spaces: Spaces) -> list[Dimension]:
        known = self.settings.as_dict().keys()
        fixed = {flag for scope, flag in self.study.given if scope in ("", "target", self.method)}
        fixed |= {"variant"} & self.base.flags.keys()
        texts = default_space(self.settings, self.base.start is not None)
        texts = {flag: text for flag, text in texts.items() if flag not in fixed}
        for scope in ("", self.method):
            texts |= {flag: text for (owner, flag), text in spaces.items() if owner == scope and flag in known}
        if both := [flag for flag in texts if flag in fixed]:
            raise TransrecError(f"--space {both[0]}={texts[both[0]]}: --{both[0]} gives it one value; leave one out")
        if not texts:
            raise TransrecError(f"--method {self.method}: nothing of it is varied; give its ranges with --space")

        def with_value(flag: str):
            return lambda word: self.study.settings_of(self.base.flags | {flag: [word]}, self.name)

        return [dimension(flag, text, with_value(flag)) for flag, text in texts.items()]

    @property
    def signature(self) -> dict[str, Any]:
        """Everything that determines the trials, except the budget."""
        settings, content, start = self.study.signatures[self.base.folder]
        rules = {"seed": self.rules.seed, "together": self.rules.together, "prune_after": self.rules.prune_after}
        return {
            "space": {dimension.flag: dimension.text for dimension in self.space},
            "flag": settings,
            "content of": {"--target": content, "--source": start},
            "rule": rules,
        }

    def job(self, trial: "FrozenTrial") -> Trial:
        """Return the run of a trial."""
        params = {flag: [str(value)] for flag, value in trial.params.items()}
        # A varied --user_encoder or --objective decides which of the varied flags a run has.
        known = self.study.known_flags(self.base.flags | params)
        flags = (
            self.base.flags | {flag: values for flag, values in params.items() if flag in known} | {"test": ["false"]}
        )
        folder = self.folder(trial.number)
        return Trial(folder.name, flags, folder, self.base.start, search=self, number=trial.number)

    def log_of(self, trial: Trial) -> Path:
        """Return the path of the output of a trial's process."""
        return self.out / "logs" / f"{trial.folder.name}.txt"

    def lines(self, folder: Path) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl in a trial's folder; [] while no epoch is over."""
        path = folder / "metrics.jsonl"
        if not path.exists():
            return []
        written = path.stat().st_mtime_ns
        if self._lines.get(path, (0, []))[0] != written:
            with about_file(path, what="cannot be read"):
                text = read_regular(path, METRICS_BYTES)
            try:
                self._lines[path] = written, [parse_json(line) for line in text.splitlines()]
            except ValueError as error:
                raise TransrecError(f"{path}: damaged; remove {folder}, and the trial is run again") from error
        return self._lines[path][1]

    def count_kill(self, number: int) -> int:
        """Count that the process of a trial was killed; return how often this has happened."""
        self._kills[number] = self._kills.get(number, 0) + 1
        return self._kills[number]

    @property
    def hours(self) -> float:
        """Hours of training and validation that all trials have taken so far."""
        lines = [line for trial in self.trials.all for line in self.lines(self.folder(trial.number))]
        return sum(line["train_seconds"] + line["evaluation_seconds"] for line in lines) / 3600

    @property
    def is_spent(self) -> bool:
        """Whether the budget of hours is used up."""
        return self.rules.hours is not None and self.hours >= self.rules.hours

    @property
    def may_extend(self) -> bool:
        """Whether trials can be added now: the budget allows it and earlier rounds are over."""
        return not (self.trials.is_waiting or self.is_spent)

    def unseen(self, seen: set[Path]) -> list[Trial]:
        """Return the unfinished trials whose folders are not in `seen`."""
        unfinished = [trial for trial in self.trials.all if not trial.state.is_finished()]
        return [self.job(trial) for trial in unfinished if self.folder(trial.number) not in seen]

    def folder(self, number: int) -> Path:
        """Return the folder of a trial's run."""
        return self.out / "trials" / f"{self.name}-{number:04d}"

    def extend(self) -> None:
        """Add the trials that the budget allows now. A trial whose settings do not fit together fails at once."""
        self.trials.refresh()
        if not self.may_extend or self.trials.refitted is not None:
            return
        known = len(self.trials.all)
        self.trials.extend()
        for trial in self.trials.all[known:]:
            try:
                self.study.settings_of(self.job(trial).flags, self.name)
            except TransrecError as error:
                self.trials.record(trial.number, Outcome("failed", reason=str(error)))

    @property
    def history(self) -> list[tuple[int, float]]:
        """Number and validation metric of each complete trial."""
        return [(trial.number, trial.value) for trial in self.trials.all if trial.state.name == "COMPLETE"]

    def row(self) -> dict[str, Any]:
        """Return the method's row for the tables."""
        trials, best = self.trials.all, self.trials.best
        states = Counter(trial.state.name for trial in trials)
        failed = [trial for trial in trials if trial.state.name == "FAIL"]
        return {
            "method": self.name,
            "trials": len(trials),
            "complete": states["COMPLETE"],
            "pruned": states["PRUNED"],
            "failed": states["FAIL"],
            "unfinished": states["RUNNING"],
            "hours": self.hours,
            "selected by": self.select_by,
            "validation": best and best.value,
            "best trial": best and best.number,
            "settings": best.params if best else {},
            "space": {dimension.flag: dimension.text for dimension in self.space},
            "failure": failed[-1].user_attrs.get(REASON, "") if failed else "",
        }

    def best_settings(self) -> dict[str, Any]:
        """Return the best trial's settings as a preset: the varied flags, and training flags of the command line."""
        best = self.trials.best
        if best.number not in self._settings:
            self._settings[best.number] = self._preset(self.job(best))
        return self._settings[best.number]

    def _preset(self, job: Trial) -> dict[str, Any]:
        settings = self.study.settings_of(job.flags, self.name)
        own = [choice.options for kind in PRESET_KINDS for choice in settings.choices[kind.flag]]
        groups = (settings.model, settings.training, settings.method_options, *own)
        preset_flags = {name for group in groups for name in group.as_dict()} | {
            dimension.flag for dimension in self.space
        }
        # Unlike flags of the command line, the values of a --presets file reach the refit only through this preset.
        from_file = {name for name, by in settings.set_by.items() if by.startswith("--presets ")}
        # No preset may set --protocol itself.
        fit = presets.for_run(self.method, settings.model.modality_names, settings.model.protocol)
        of_protocol = {name for preset in fit if preset.protocol for name in preset.values}
        kept = (preset_flags & job.flags.keys() | from_file | of_protocol) - {*presets.NEVER, "seed"}
        return {name: value for name, value in settings.as_dict().items() if name in kept}


class Search:
    """Searches of several methods by the same rules, with the interface of a study, so that `Workers` can run them.

    Args:
        study: the study with one row per method; its only seed is the seed of all trials.
        spaces: ranges and choices that override those of presets.
        rules: the rules of the search.

    Raises TransrecError if a range is empty, or if no run has a flag that is to be varied.
    """

    def __init__(self, study: Study, spaces: Spaces, rules: Rules):
        self.study, self.rules, self.out = study, rules, study.out
        self.methods = [MethodSearch(self.out, study, job, spaces, rules) for _, (job,) in study.rows]
        named: dict[tuple[str, str], str] = {}
        for search in self.methods:
            if (other := named.setdefault((search.method, search.modality), search.name)) != search.name:
                raise TransrecError(
                    f"--method: {other} and {search.name} would share one entry of {BEST}, as presets know both as "
                    f"{search.method} over several modalities; search them in folders of their own (--out)"
                )
        for (scope, flag), text in spaces.items():
            if not any(flag in search.settings.as_dict() for search in self.methods if scope in ("", search.method)):
                raise TransrecError(f"--space {flag}={text}: no run of this search has such a flag")
        self._seen: set[Path] = set()

    def open(self) -> None:
        """Read the trials in the folder, or create their file. Raises TransrecError if it holds another search."""
        with self._locked():
            if not (self.out / "search.db").exists():
                (self.out / BEST).unlink(missing_ok=True)
            storage = open_storage(self.out / "search.db")
            for search in self.methods:
                search.open(storage)

    def _locked(self) -> closing[Lock]:
        """Return a context in which no other process adds trials."""
        return closing(Lock(self.out / "search.lock", wait=True))

    @property
    def jobs(self) -> list[Job]:
        """The source runs, and the trials that are known so far."""
        trials = [search.job(trial) for search in self.methods for trial in search.trials.all]
        self._seen |= {trial.folder for trial in trials}
        return [*(job for _, job in self.study.sources.values()), *trials]

    def new_jobs(self) -> list[Job]:
        """Add the trials that the budget allows now, and return those that this process has not seen yet."""
        if any(search.may_extend for search in self.methods):
            with self._locked():
                for search in self.methods:
                    search.extend()
        new = [trial for search in self.methods for trial in search.unseen(self._seen)]
        self._seen |= {trial.folder for trial in new}
        return new

    def write_tables(self) -> None:
        """Write the tables, and the best settings as presets, of the trials that are over so far."""
        self._write(search_tables([search.row() for search in self.methods], self.rules.budget))

    def _write(self, tables: dict[str, str]) -> None:
        for name, text in tables.items():
            write_text(self.out / name, text)
        with self._locked():
            # Other methods may have been searched here before, or in another process.
            best = self._best_so_far()
            for search in self.methods:
                if search.trials.best:
                    best.setdefault(search.method, {})[search.modality] = search.best_settings()
            write_text(self.out / BEST, json.dumps(best, indent=2) + "\n")

    def _best_so_far(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the content of the file of best settings; {} if there is none that can be read."""
        try:
            known = read_json(self.out / BEST)
        except (OSError, ValueError, TransrecError):
            return {}
        tables = known.items() if isinstance(known, dict) else ()
        return {method: table for method, table in tables if isinstance(table, dict)}

    def draw(self) -> None:
        """Plot each method's best metric against the number of trials, and the importance of each flag."""
        draw_history(self.out / "history.png", {search.name: search.history for search in self.methods})
        draw_importances(
            self.out / "importance.png", {search.name: search.trials.importances() for search in self.methods}
        )

    def refit(self, seeds: list[int]) -> Study:
        """Return the study that ranks the test targets, over seeds, with the best settings of each method that has any.

        No trial can be added from now on.
        """
        study = self.study
        searches = [search for search in self.methods if search.trials.best]
        bases = [search.base for search in searches]
        listed = tuple(tuple(point.values()) for point, (job,) in study.rows if job in bases)
        # The best settings include those of a --presets file, which only source runs still read.
        given = {key: values for key, values in study.given.items() if key[1] != "presets"}
        for scope in ("", "source"):
            if file := study.given.get((scope, "presets")):
                given["source", "presets"] = file
        given["target", "presets"] = [str(self.out / BEST)]
        refitted = Study(
            study.source, study.target, self.out, replace(study.grid, listed=listed), seeds, given, study.modality
        )
        with self._locked():
            for search in searches:
                search.trials.mark_refitted(search.trials.best.number)
        return refitted

    def write_refitted(self, study: Study) -> str:
        """Write the tables with the test metrics of a study of `refit`; return the Markdown table."""
        tested = {tuple(point.values()): [job.result for job in jobs if job.is_done] for point, jobs in study.rows}
        points = [tuple(point.values()) for point, _ in self.study.rows]
        rows = [search.row() for search in self.methods]
        tables = search_tables(
            [row | {"tested": tested.get(point, [])} for row, point in zip(rows, points, strict=True)],
            self.rules.budget,
        )
        self._write(tables)
        return tables["search.md"]
