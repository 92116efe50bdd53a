"""The runs of a study, and its tables.

Each point of a grid has one target run per seed. It starts from the source run with the point's objective, encoder and
other source settings; points with the same source settings share a source run. The name of a run's folder contains a
hash of everything that affects the run's numbers. If a study is started again, it skips finished runs, resumes
interrupted ones, and repeats only runs whose settings or data have changed.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transrec import assembly, presets, settings
from transrec.data.dataset import Dataset, load_dataset
from transrec.errors import TransrecError, printable
from transrec.options import ModelOptions
from transrec.paths import REPOSITORY, resolve, write_text
from transrec.reports.marks import Row, baseline_rows, mark, note
from transrec.reports.published import Published, published_columns, published_note
from transrec.reports.results import frame, summary
from transrec.reports.tables import (
    COLUMNS,
    METRICS,
    ExtraColumn,
    below_popularity,
    comma_separated,
    latex,
    markdown,
    markdown_text,
    metric_cells,
    read_result,
    result_row,
)
from transrec.reports.tpme import tpme_column
from transrec.settings import Settings
from transrec.studies.grid import Axis, Grid

SCRIPT = REPOSITORY / "scripts" / "train.py"
# Value of an axis that does not affect a row.
NO_VALUE = "-"
BELOW = "(below)"


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Attributes:
        name: the run's name in the study's output.
        flags: the script's flags, except those that name run folders.
        folder: the run's folder.
        start: the run from which this run starts.
    """

    name: str
    flags: dict[str, list[str]]
    folder: Path
    start: "Job | None" = None

    @property
    def result(self) -> dict[str, Any] | None:
        """The content of result.json; None while the run is not done, and if the file is damaged."""
        try:
            return read_result(self.folder)
        except TransrecError:
            return None

    @property
    def is_done(self) -> bool:
        return self.result is not None

    @property
    def is_wanted(self) -> bool:
        """Whether the run should still be started."""
        return True

    @property
    def may_stop(self) -> bool:
        """Whether the run can be stopped, because no further progress of it is needed."""
        return False

    @property
    def summary(self) -> str:
        """The outcome of the run as text."""
        return f"HR@10 {cells(self.result)[0]}"

    def end(self, status: int, stopped: bool) -> bool | None:
        """Return whether the run is done, given its process's exit status; None if it should be run again.

        Args:
            stopped: whether all runs were asked to stop.
        """
        return (status == 0 and self.is_done) or (None if stopped else False)

    @property
    def started_marker(self) -> Path:
        """The file whose existence shows that the run has begun."""
        return self.folder / "options.json"

    @property
    def command(self) -> list[str]:
        """The command that starts the run, or resumes it if it has begun."""
        return self.command_with("--resume" if self.started_marker.exists() else "--output")

    def command_with(self, where: str) -> list[str]:
        """Return the command that starts the run, if `where` is --output, or resumes it, if --resume."""
        flags = self.flags | ({"checkpoint": [str(self.start.folder)]} if self.start else {})
        return [sys.executable, str(SCRIPT), *_words(flags), where, str(self.folder)]


@dataclass
class Study:
    """The runs of a grid.

    Args:
        source, target: dataset folders; without a source nothing is pretrained.
        out: folder for runs and tables.
        grid: the grid to run, with axes for the study's modality (`Axis.for_modality`).
        seeds: seeds of the target runs.
        given: further flags, by (stage or method or "", flag).
        modality: item modality, unless an axis sets it.
        published: published figures to show next to the rows that they belong to.

    Attributes:
        rows: the points of the grid, with their runs; an axis that does not affect a point's runs has NO_VALUE there.
        sources: the source runs by folder, with the axis values that determine them.
        idle_axes: by method, the axes that do not affect the method's runs.
        signatures: by run folder, what determines the run's numbers: settings, the dataset's content, and the name of
            the source run's folder.
    """

    source: Path | None
    target: Path
    out: Path
    grid: Grid
    seeds: list[int]
    given: dict[tuple[str, str], list[str]]
    modality: str = "text"
    published: Published = Published()
    rows: list[tuple[dict[str, str], list[Job]]] = field(init=False, default_factory=list)
    sources: dict[Path, tuple[dict[str, str], Job]] = field(init=False, default_factory=dict)
    idle_axes: dict[str, set[str]] = field(init=False, default_factory=dict)
    signatures: dict[Path, tuple[dict[str, Any], str, str | None]] = field(init=False, default_factory=dict)

    def __post_init__(self):
        self._used_flags: set[tuple[str, str]] = set()
        self._datasets: dict[tuple, tuple[Dataset, str]] = {}
        self._summaries: set[str] = set()
        self._checked: set[str] = set()
        self._identities: dict[Path, dict[str, str]] = {}
        rows: dict[tuple[str, ...], tuple[dict[str, str], list[Job]]] = {}
        for point in self.grid.points():
            start = self._source_job(point)
            idle = [axis for axis in self.grid.axes if not self._matters(axis, point, start)]
            for axis in idle:
                if len(axis.values) > 1:
                    self.idle_axes.setdefault(self._method(point)[0], set()).add(axis.name)
            row = point | dict.fromkeys((axis.name for axis in idle), NO_VALUE)
            if tuple(row.values()) not in rows:
                rows[tuple(row.values())] = row, [self._target_job(point, row, seed, start) for seed in self.seeds]
        self.rows = list(rows.values())
        self._datasets.clear()
        if unused := [".".join(filter(None, key)) for key in self.given if key not in self._used_flags]:
            raise TransrecError(f"--{unused[0]}: no run of this study has such a flag")

    @property
    def jobs(self) -> list[Job]:
        """All runs, each source run before the target runs that start from it."""
        return [*(job for _, job in self.sources.values()), *(job for _, jobs in self.rows for job in jobs)]

    def new_jobs(self) -> list[Job]:
        """Return the runs to add in response to results so far: none, because a study knows all its runs in advance."""
        return []

    def _source_job(self, point: dict[str, str]) -> Job | None:
        flags = self._flags(point, "source")
        if self.source is None or float(flags.get("user_fraction", ["1"])[0]) == 0:
            return None
        values = {axis.name: point[axis.name] for axis in self.grid.axes if self._sets(axis, point, "source")}
        job = self._job(["source", *values.values()], flags | {"dataset": [str(self.source)]}, None)
        return self.sources.setdefault(job.folder, (values, job))[1]

    def _matters(self, axis: Axis, point: dict[str, str], start: Job | None) -> bool:
        """Return whether the axis' value affects the target runs of a point, or the source run that they start from."""
        if "method" in axis.settings(point[axis.name]) or self._sets(axis, point, "target"):
            return True
        if self.source is None:
            return False
        # The point may have no source run because this axis sets source.user_fraction to 0.
        return self._sets(axis, point, "source") if start else "source.user_fraction" in axis.settings(point[axis.name])

    def _sets(self, axis: Axis, point: dict[str, str], stage: str) -> bool:
        """Return whether a stage's run at a point has a flag that the axis sets."""
        names = {name for scope, name in _scoped(axis, point) if scope in ("", stage)}
        return not names.isdisjoint(self._known(point, stage))

    def _target_job(self, point: dict[str, str], row: dict[str, str], seed: int, start: Job | None) -> Job:
        flags = self._flags(point, "target") | {"dataset": [str(self.target)], "seed": [str(seed)]}
        name = [value for value in row.values() if value != NO_VALUE]
        return self._job([*name, f"seed{seed}"], flags, start)

    def _flags(self, point: dict[str, str], stage: str) -> dict[str, list[str]]:
        """Return the flags of a run: those given for all runs, its stage and its method, and those of the point."""
        method, variant = self._method(point, stage)
        known = self._known(point, stage)
        flags = {"method": [method], "item_tower": [self._modality(point)]}
        if self._modality(point) != self.modality:
            # A row over only one of the study's modalities uses the presets for all of them together.
            of_all = presets.MODALITIES.get(self.modality, {})
            free = known - self._preset_file_flags(stage, method, self._modality(point))
            flags |= {name: [str(value)] for name, value in of_all.items() if name in free}
        for key, values in self._given(stage, method):
            if key[1] in known:
                flags[key[1]] = values
                self._used_flags.add(key)
        flags |= {name: value.split(",") for name, value in self._axis_flags(point, stage).items() if name in known}
        if variant:
            flags["variant"] = [variant]
        return flags

    def _known(self, point: dict[str, str], stage: str) -> set[str]:
        """Return the names of the flags that a run has."""
        method, _ = self._method(point, stage)
        values_of = {name: values[0] for (_, name), values in self._given(stage, method) if values}
        values_of |= self._axis_flags(point, stage) | {"method": method, "item_tower": self._modality(point)}
        return settings.flags(**values_of)

    @staticmethod
    def known_flags(flags: dict[str, list[str]]) -> set[str]:
        """Return the names of all flags of a run with the given ones."""
        return settings.flags(**{name: values[0] for name, values in flags.items() if values})

    def _axis_flags(self, point: dict[str, str], stage: str) -> dict[str, str]:
        """Return the flags that the axes set in a stage's run at a point, with their values."""
        scoped = (item for axis in self.grid.axes for item in _scoped(axis, point).items())
        return {name: value for (scope, name), value in scoped if scope in ("", stage)}

    def _method(self, point: dict[str, str], stage: str = "target") -> tuple[str, str]:
        """Return the method and variant of a stage's run at a point of the grid."""
        method, _, variant = self._axis_flags(point, stage).get("method", "full").partition(":")
        return method, variant

    def _preset_file_flags(self, stage: str, method: str, item_tower: str) -> set[str]:
        """Return the flags that the file given with --presets sets for runs of a method."""
        (*_, file) = None, *(values[0] for (_, name), values in self._given(stage, method) if name == "presets")
        read_by = ModelOptions(item_tower=item_tower).modality_names
        return {
            flag for preset in presets.for_run(method, read_by, file=file) if preset.from_file for flag in preset.values
        }

    def _modality(self, point: dict[str, str]) -> str:
        return point.get("item_tower", self.modality)

    def _given(self, stage: str, method: str) -> Iterator[tuple[tuple[str, str], list[str]]]:
        """Yield the further flags of a run by scope and name, with more general scopes first."""
        for scope in ("", stage, *((method,) if stage == "target" else ())):
            yield from ((key, values) for key, values in self.given.items() if key[0] == scope)

    def _job(self, name: list[str], flags: dict[str, list[str]], start: Job | None) -> Job:
        title = "-".join(map(_short, name))
        parsed = self.settings_of(flags, title)
        hashed_names = settings.result_options(parsed.as_dict()).keys() | settings.STOPPING
        hashed_flags = {
            name: value
            for name, value in parsed.non_defaults.items()
            if name in hashed_names and name not in settings.PLACES
        }
        signature = hashed_flags, self._data_hashes(parsed), start and start.folder.name
        digest = hashlib.sha256(json.dumps(signature, sort_keys=True).encode()).hexdigest()[:8]
        folder = "".join(c if c.isalnum() or c in "-_." else "-" for c in title)
        job = Job(title, flags, self.out / "runs" / f"{folder}-{digest}", start)
        self.signatures[job.folder] = signature
        self._identities[job.folder] = _identity(parsed)
        return job

    def settings_of(self, flags: dict[str, list[str]], title: str) -> Settings:
        """Return the settings of a run with the given flags. Raises TransrecError if such a run could not start."""
        parsed = settings.parse(_words(flags), "full", {})
        self._check(parsed, title)
        return parsed

    def _check(self, parsed: Settings, name: str) -> None:
        """Raise TransrecError, as the run itself would, if its method or sizes do not fit its backbones."""
        data = parsed.data
        model = _sizes({key: value for key, value in parsed.model.as_dict().items() if key != "objective"})
        kinds = ("method", "user_encoder", "modalities")
        parts = [_sizes(choice.options.as_dict()) for kind in kinds for choice in parsed.choices[kind]]
        built_of = [parsed.method, *parts, model, data.max_seq_len]
        if (key := json.dumps([*built_of, parsed.training.train_recommender])) in self._checked:
            return
        try:
            assembly.check_fit(parsed.plan)
        except TransrecError as error:
            raise TransrecError(f"{error} (run {name})") from error
        self._checked.add(key)

    def _data_hashes(self, parsed: Settings) -> str:
        """Return the hashes of the dataset's files. Loads the dataset, so errors in it are reported before any run."""
        data = parsed.data
        key = (data.dataset, data.max_seq_len, data.min_seq_len, data.splitting, data.files)
        if key not in self._datasets:
            dataset = load_dataset(*key)
            self._datasets[key] = dataset, " ".join(dataset.hashes().values())
        dataset, content = self._datasets[key]
        summary = dataset.with_user_samples(data.user_fraction, data.eval_users, data.subset_seed).summary
        if summary not in self._summaries:
            self._summaries.add(summary)
            print(printable(f"data        {summary}"), flush=True)
        return content

    def tables(self) -> dict[str, str]:
        """Return the texts of the study's table files, by name, with the results so far."""
        rows = [self._table_row(point, jobs) for point, jobs in self.rows]
        marked = [*rows, *(beside := baseline_rows(rows))]
        columns = {metric: mark(marked, metric) for metric in METRICS}
        further, legend = self._further_columns(rows)
        lines, numbers, emphasis = [], [], {}
        for number, (row, (point, _)) in enumerate(zip(rows, self.rows, strict=True)):
            line = [*map(_short, point.values()), str(len(row.runs)), *cells(*row.results)]
            for place, column in enumerate(columns.values(), len(point) + 1):
                line[place] = column.cell(number, line[place])
                if column.places[number]:
                    emphasis[number, place] = column.places[number]
            lines.append([*line, *(column.cells[number] for column in further)])
            if row.runs:
                values = summary(frame(dict(row.runs.values())))
                values |= {f"{metric} p": column.p_values[number] for metric, column in columns.items()}
                values |= {name: value for column in further for name, value in column.numbers[number].items()}
                numbers.append({"stage": "target", **_tower_and_method(row.results[0]), **point, **values})
        axes = [axis.name for axis in self.grid.axes]
        for number, row in enumerate(beside, len(rows)):
            scores = metric_cells(*(result["test"] for result in row.results))
            scores = [column.cell(number, cell) for column, cell in zip(columns.values(), scores, strict=True)]
            empty = [NO_VALUE] * len(axes)
            lines.append([row.name, *empty, *scores, "0", NO_VALUE, NO_VALUE, *[NO_VALUE] * len(further)])
        header, below = [*axes, "seeds", *COLUMNS, *(column.name for column in further)], note(marked, columns)
        sources, of_sources = self._source_table()
        return {
            "table.md": f"{markdown(header, lines, emphasis)}\n\n{markdown_text(below)}\n{legend}{sources}",
            "table.csv": comma_separated([*numbers, *of_sources]),
            "table.tex": f"% {printable(below)}\n{latex(header, lines, emphasis)}\n",
        }

    def _further_columns(self, rows: list[Row]) -> tuple[list[ExtraColumn], str]:
        """Return the columns after COLUMNS, which compare a row with other rows or with papers, and their legend."""
        results = [row.results for row in rows]
        columns, legend = [tpme_column(results)], _legend(rows)
        figures = [self.published.matching(self._identity(point, jobs)) for point, jobs in self.rows]
        if self.published.always_shown or any(figures):
            columns += published_columns(figures, results)
            legend += f"\n{markdown_text(published_note(figures))}\n"
        return columns, legend

    def _identity(self, point: dict[str, str], jobs: list[Job]) -> dict[str, str]:
        """Return the fields by which published figures identify a row, with the method named as in the table."""
        return self._identities[jobs[0].folder] | {name: point[name] for name in ("method",) if name in point}

    def _table_row(self, point: dict[str, str], jobs: list[Job]) -> Row:
        """Return a table row with a point's finished runs, named by the values of the axes that are varied."""
        varied = [point[axis.name] for axis in self.grid.axes if len(axis.values) > 1 and point[axis.name] != NO_VALUE]
        runs = {seed: (job.folder, done) for seed, job in zip(self.seeds, jobs, strict=True) if (done := job.result)}
        return Row(" ".join(map(_short, varied)), runs)

    def _source_table(self) -> tuple[str, list[dict[str, Any]]]:
        """Return the source runs so far, in Markdown and as numbers; "" and [] if there are none."""
        lines, numbers = [], []
        for values, job in self.sources.values():
            result = job.result
            lines.append([" ".join(map(_short, values.values())) or "source", *(cells(result) if result else cells())])
            if result:
                numbers.append(
                    {"stage": "source", **_tower_and_method(result), **values, **summary(frame({job.folder: result}))}
                )
        remark = "Each source run has one seed; they are not tested against each other."
        table = f"\nSource runs:\n\n{markdown(['source run', *COLUMNS], lines)}\n\n{remark}\n" if lines else ""
        return table, numbers

    def write_tables(self) -> None:
        for name, text in self.tables().items():
            write_text(self.out / name, text)


def _identity(parsed: Settings) -> dict[str, str]:
    """Return the dataset, encoder, objective and method of a run, named as in published figures."""
    values, read_by = parsed.as_dict(), parsed.model.modality_names
    return {
        "dataset": Path(parsed.data.dataset).name,
        "encoder": ",".join(Path(values.get(f"{modality}_encoder") or modality).name for modality in read_by),
        "objective": parsed.choice("objective").name,
        "method": parsed.method,
    }


def _sizes(options: dict[str, Any]) -> dict[str, Any]:
    """Return what decides whether the parts of a model fit together: for floats, only whether they are 0."""
    return {name: value != 0 if isinstance(value, float) else value for name, value in options.items()}


def cells(*results: dict[str, Any]) -> list[str]:
    """Return a row's cells for COLUMNS over its results so far, marked if the results rank below popularity."""
    if not results:
        return ["-"] * len(COLUMNS)
    hit_rate, *others = result_row(*results)
    return [f"{hit_rate} {BELOW}" if below_popularity(*results) else hit_rate, *others]


def _results(rows: list[Row]) -> list[dict[str, Any]]:
    return [result for row in rows for result in row.results]


def _legend(rows: list[Row]) -> str:
    """Return the legend of a table's runs, apart from the note on their tests."""
    towers = dict.fromkeys(result["item_tower"] for result in _results(rows) if "item_tower" in result)
    text = f"\nItem tower: {', '.join(towers)}.\n" if towers else ""
    if any(row.runs and below_popularity(*row.results) for row in rows):
        text += f"\n{BELOW}: ranks below popularity.\n"
    if sum(bool(row.runs) for row in rows) > 1:
        text += "\nTPME: IISAN's composite of the three columns before it, over the table's rows; lower is better.\n"
    return text


def _tower_and_method(result: dict[str, Any]) -> dict[str, str]:
    """Return the item tower and the method of a result."""
    return {name: result[name] for name in ("item_tower", "method") if name in result}


def _scoped(axis: Axis, point: dict[str, str]) -> dict[tuple[str, str], str]:
    """Return the values that an axis sets at a point, by (stage or "", flag). Only target runs have a method."""
    sets = axis.settings(point[axis.name])
    scope = "target" if "method" in sets else ""
    return {(flag.rpartition(".")[0] or scope, flag.rpartition(".")[2]): value for flag, value in sets.items()}


def _words(flags: dict[str, list[str]]) -> list[str]:
    return [word for name, values in flags.items() for word in (f"--{name}", *values)]


def _short(value: str) -> str:
    """Return a value as shown in cells and names: only the last part of a folder's path."""
    words = [value] if resolve(value).is_dir() else value.split(",")
    return printable(",".join(Path(word).name if resolve(word).is_dir() else word for word in words))
