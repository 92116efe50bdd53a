"""The runs of a study, and its tables.

Each point of a grid is a target run for each seed, which starts from the source run that its objective, encoder and so
on call for; points that call for the same one share it. A run's folder is named after all that decides its numbers: a
study that is started again skips what is done, resumes what was interrupted, and repeats only what has changed.
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
from transrec.reports.marks import Row, baselines_beside, mark, note
from transrec.reports.published import Published, published_columns, published_note
from transrec.reports.results import frame, summary
from transrec.reports.tables import (
    COLUMNS,
    METRICS,
    Further,
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
# Of an axis that does not change a row.
NO_VALUE = "-"
BELOW = "(below)"
# What names a run's folder beside what decides its numbers.
COUNTS_TOO = {"epochs", "patience"}
# The dataset's place may change, its content may not.
PLACES = {"dataset", "users_file", "items_file"}


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Attributes:
        name: what the study calls it.
        flags: what the script is given, less the folders.
        folder: of the run.
        start: the run it starts from.
    """

    name: str
    flags: dict[str, list[str]]
    folder: Path
    start: "Job | None" = None

    @property
    def result(self) -> dict[str, Any] | None:
        """What its result.json holds; None while it is not done, and when the file is damaged."""
        try:
            return read_result(self.folder)
        except TransrecError:
            return None

    @property
    def is_done(self) -> bool:
        return self.result is not None

    @property
    def is_wanted(self) -> bool:
        """Whether it is still to be started."""
        return True

    @property
    def may_stop(self) -> bool:
        """Whether what it has done so far is all that is wanted of it."""
        return False

    @property
    def told(self) -> str:
        """What came of it, for people."""
        return f"HR@10 {cells(self.result)[0]}"

    def end(self, status: int, stopped: bool) -> bool | None:
        """Whether it is done, now that its process has left with a status; None: it is to be run again.

        Args:
            stopped: whether all runs were told to stop.
        """
        return (status == 0 and self.is_done) or (None if stopped else False)

    @property
    def begun(self) -> Path:
        """The file by which one knows that it has begun."""
        return self.folder / "options.json"

    @property
    def command(self) -> list[str]:
        """What begins it, or goes on with it where it has begun."""
        return self.command_with("--resume" if self.begun.exists() else "--output")

    def command_with(self, where: str) -> list[str]:
        """What begins it, with --output, or goes on with it, with --resume."""
        flags = self.flags | ({"checkpoint": [str(self.start.folder)]} if self.start else {})
        return [sys.executable, str(SCRIPT), *_words(flags), where, str(self.folder)]


@dataclass
class Study:
    """The runs of a grid.

    Args:
        source, target: dataset folders; without a source nothing is pretrained.
        out: where runs and tables go.
        grid: what is varied; its axes are those over the study's modality.
        seeds: of the target runs.
        given: further flags, by (stage or method or "", flag).
        modality: what items are represented by, where no axis says otherwise.
        published: figures to show beside the rows that they are of.

    Attributes:
        rows: the points of the grid, with their runs; an axis that does not change the runs of a point has no value.
        sources: the source runs by folder, with the values that decide them.
        once: by method, the axes that do not change its runs.
        signatures: by a run's folder, the settings, the dataset's content and the start that decide its numbers.
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
    once: dict[str, set[str]] = field(init=False, default_factory=dict)
    signatures: dict[Path, tuple[dict[str, Any], str, str | None]] = field(init=False, default_factory=dict)

    def __post_init__(self):
        self._taken: set[tuple[str, str]] = set()
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
                    self.once.setdefault(self._method(point)[0], set()).add(axis.name)
            row = point | dict.fromkeys((axis.name for axis in idle), NO_VALUE)
            if tuple(row.values()) not in rows:
                rows[tuple(row.values())] = row, [self._target_job(point, row, seed, start) for seed in self.seeds]
        self.rows = list(rows.values())
        self._datasets.clear()
        if unused := [".".join(filter(None, key)) for key in self.given if key not in self._taken]:
            raise TransrecError(f"--{unused[0]}: no run of this study has such a flag")

    @property
    def jobs(self) -> list[Job]:
        """All runs, each source run before the target runs that start from it."""
        return [*(job for _, job in self.sources.values()), *(job for _, jobs in self.rows for job in jobs)]

    def more(self) -> list[Job]:
        """The runs that what has come of others calls for: none, all are known from the beginning."""
        return []

    def _source_job(self, point: dict[str, str]) -> Job | None:
        flags = self._flags(point, "source")
        if self.source is None or float(flags.get("user_fraction", ["1"])[0]) == 0:
            return None
        values = {axis.name: point[axis.name] for axis in self.grid.axes if self._sets(axis, point, "source")}
        job = self._job(["source", *values.values()], flags | {"dataset": [str(self.source)]}, None)
        return self.sources.setdefault(job.folder, (values, job))[1]

    def _matters(self, axis: Axis, point: dict[str, str], start: Job | None) -> bool:
        """Whether the axis' value changes the target runs of a point, or the source run that they start from."""
        if "method" in axis.settings(point[axis.name]) or self._sets(axis, point, "target"):
            return True
        if self.source is None:
            return False
        # Without a start, because that of the value is to train on nobody.
        return self._sets(axis, point, "source") if start else "source.user_fraction" in axis.settings(point[axis.name])

    def _sets(self, axis: Axis, point: dict[str, str], stage: str) -> bool:
        """Whether a stage's run at a point reads a flag that the axis sets."""
        names = {name for scope, name in _scoped(axis, point) if scope in ("", stage)}
        return not names.isdisjoint(self._known(point, stage))

    def _target_job(self, point: dict[str, str], row: dict[str, str], seed: int, start: Job | None) -> Job:
        flags = self._flags(point, "target") | {"dataset": [str(self.target)], "seed": [str(seed)]}
        name = [value for value in row.values() if value != NO_VALUE]
        return self._job([*name, f"seed{seed}"], flags, start)

    def _flags(self, point: dict[str, str], stage: str) -> dict[str, list[str]]:
        """The flags of a run: those given for all, for its stage, for its method, and the point's own."""
        method, variant = self._method(point, stage)
        known = self._known(point, stage)
        flags = {"method": [method], "item_tower": [self._modality(point)]}
        if self._modality(point) != self.modality:
            # One of the study's modalities alone is seen under what holds for them together.
            of_all = presets.MODALITIES.get(self.modality, {})
            taken = known - self._in_file(stage, method, self._modality(point))
            flags |= {name: [str(value)] for name, value in of_all.items() if name in taken}
        for key, values in self._given(stage, method):
            if key[1] in known:
                flags[key[1]] = values
                self._taken.add(key)
        flags |= {name: value.split(",") for name, value in self._set(point, stage).items() if name in known}
        if variant:
            flags["variant"] = [variant]
        return flags

    def _known(self, point: dict[str, str], stage: str) -> set[str]:
        """The flags that a run has."""
        method, _ = self._method(point, stage)
        said = {name: values[0] for (_, name), values in self._given(stage, method) if values}
        said |= self._set(point, stage) | {"method": method, "item_tower": self._modality(point)}
        return settings.flags(**said)

    def _set(self, point: dict[str, str], stage: str) -> dict[str, str]:
        """What the axes set in a stage's run at a point, by flag."""
        scoped = (of for axis in self.grid.axes for of in _scoped(axis, point).items())
        return {name: value for (scope, name), value in scoped if scope in ("", stage)}

    def _method(self, point: dict[str, str], stage: str = "target") -> tuple[str, str]:
        """Method and variant of a stage's run at a point of the grid."""
        method, _, variant = self._set(point, stage).get("method", "full").partition(":")
        return method, variant

    def _in_file(self, stage: str, method: str, item_tower: str) -> set[str]:
        """The flags that a file of --presets sets for runs of a method."""
        (*_, file) = None, *(values[0] for (_, name), values in self._given(stage, method) if name == "presets")
        read_by = ModelOptions(item_tower=item_tower).read_by
        return {flag for preset in presets.of(method, read_by, file=file) if preset.file for flag in preset.values}

    def _modality(self, point: dict[str, str]) -> str:
        return point.get("item_tower", self.modality)

    def _given(self, stage: str, method: str) -> Iterator[tuple[tuple[str, str], list[str]]]:
        """The further flags of a run by scope and name, the more general scopes first."""
        for scope in ("", stage, *((method,) if stage == "target" else ())):
            yield from ((key, values) for key, values in self.given.items() if key[0] == scope)

    def _job(self, name: list[str], flags: dict[str, list[str]], start: Job | None) -> Job:
        title = "-".join(map(_short, name))
        parsed = self.settings_of(flags, title)
        named = settings.deciding(parsed.as_dict()).keys() | COUNTS_TOO
        counts = {name: value for name, value in parsed.departures.items() if name in named and name not in PLACES}
        decides = counts, self._content(parsed), start and start.folder.name
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
        folder = "".join(c if c.isalnum() or c in "-_." else "-" for c in title)
        job = Job(title, flags, self.out / "runs" / f"{folder}-{digest}", start)
        self.signatures[job.folder] = decides
        self._identities[job.folder] = _identity(parsed)
        return job

    def settings_of(self, flags: dict[str, list[str]], title: str) -> Settings:
        """The settings of a run that is given flags. Raises TransrecError where it could not run."""
        parsed = settings.parse(_words(flags), "full", {})
        self._check(parsed, title)
        return parsed

    def _check(self, parsed: Settings, name: str) -> None:
        """Raise TransrecError where a run's method or sizes do not fit its backbones, as the run itself would do."""
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

    def _content(self, parsed: Settings) -> str:
        """What the dataset's files hold; reads it whole, so that a mistake in it is told before the first run."""
        data = parsed.data
        key = (data.dataset, data.max_seq_len, data.min_seq_len, data.splitting, data.files)
        if key not in self._datasets:
            dataset = load_dataset(*key)
            self._datasets[key] = dataset, " ".join(dataset.hashes().values())
        dataset, content = self._datasets[key]
        summary = dataset.drawing(data.user_fraction, data.eval_users, data.subset_seed).summary
        if summary not in self._summaries:
            self._summaries.add(summary)
            print(printable(f"data        {summary}"), flush=True)
        return content

    def tables(self) -> dict[str, str]:
        """The study's files by name: of what has finished so far."""
        rows = [self._table_row(point, jobs) for point, jobs in self.rows]
        marked = [*rows, *(beside := baselines_beside(rows))]
        columns = {metric: mark(marked, metric) for metric in METRICS}
        further, legend = self._further(rows)
        lines, numbers, emphasis = [], [], {}
        for number, (row, (point, _)) in enumerate(zip(rows, self.rows, strict=True)):
            line = [*map(_short, point.values()), str(len(row.runs)), *cells(*row.results)]
            for place, column in enumerate(columns.values(), len(point) + 1):
                line[place] = column.cell(number, line[place])
                if column.places[number]:
                    emphasis[number, place] = column.places[number]
            lines.append([*line, *(column.cells[number] for column in further)])
            if row.runs:
                told = summary(frame(dict(row.runs.values())))
                told |= {f"{metric} p": column.p_values[number] for metric, column in columns.items()}
                told |= {name: value for column in further for name, value in column.numbers[number].items()}
                numbers.append({"stage": "target", **_names(row.results[0]), **point, **told})
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

    def _further(self, rows: list[Row]) -> tuple[list[Further], str]:
        """The columns behind COLUMNS, which compare a row with the others or with papers, and what is said of them."""
        results = [row.results for row in rows]
        columns, legend = [tpme_column(results)], _legend(rows)
        figures = [self.published.of(self._identity(point, jobs)) for point, jobs in self.rows]
        if self.published.wanted or any(figures):
            columns += published_columns(figures, results)
            legend += f"\n{markdown_text(published_note(figures))}\n"
        return columns, legend

    def _identity(self, point: dict[str, str], jobs: list[Job]) -> dict[str, str]:
        """What published figures tell rows by; the method is what the table calls it."""
        return self._identities[jobs[0].folder] | {name: point[name] for name in ("method",) if name in point}

    def _table_row(self, point: dict[str, str], jobs: list[Job]) -> Row:
        """What has finished of a point's runs; in its name only what is varied."""
        varied = [point[axis.name] for axis in self.grid.axes if len(axis.values) > 1 and point[axis.name] != NO_VALUE]
        runs = {seed: (job.folder, of) for seed, job in zip(self.seeds, jobs, strict=True) if (of := job.result)}
        return Row(" ".join(map(_short, varied)), runs)

    def _source_table(self) -> tuple[str, list[dict[str, Any]]]:
        """The source runs so far in Markdown, and as numbers; nothing where there are none."""
        lines, numbers = [], []
        for values, job in self.sources.values():
            result = job.result
            lines.append([" ".join(map(_short, values.values())) or "source", *(cells(result) if result else cells())])
            if result:
                numbers.append({"stage": "source", **_names(result), **values, **summary(frame({job.folder: result}))})
        said = "Each source run has one seed; they are not tested against each other."
        table = f"\nSource runs:\n\n{markdown(['source run', *COLUMNS], lines)}\n\n{said}\n" if lines else ""
        return table, numbers

    def write_tables(self) -> None:
        for name, text in self.tables().items():
            write_text(self.out / name, text)


def _identity(parsed: Settings) -> dict[str, str]:
    """Dataset, encoder, objective and method of a run, as published figures name them."""
    told, read_by = parsed.as_dict(), parsed.model.read_by
    return {
        "dataset": Path(parsed.data.dataset).name,
        "encoder": ",".join(Path(told.get(f"{modality}_encoder") or modality).name for modality in read_by),
        "objective": parsed.choice("objective").name,
        "method": parsed.method,
    }


def _sizes(options: dict[str, Any]) -> dict[str, Any]:
    """What of options decides whether parts fit: of a rate or a share only whether it is none."""
    return {name: value != 0 if isinstance(value, float) else value for name, value in options.items()}


def cells(*results: dict[str, Any]) -> list[str]:
    """COLUMNS of a row over its results so far; says where they rank below popularity."""
    if not results:
        return ["-"] * len(COLUMNS)
    hit_rate, *others = result_row(*results)
    return [f"{hit_rate} {BELOW}" if below_popularity(*results) else hit_rate, *others]


def _results(rows: list[Row]) -> list[dict[str, Any]]:
    return [result for row in rows for result in row.results]


def _legend(rows: list[Row]) -> str:
    """What is said of a table's runs beside their tests."""
    towers = dict.fromkeys(result["item_tower"] for result in _results(rows) if "item_tower" in result)
    text = f"\nItem tower: {', '.join(towers)}.\n" if towers else ""
    if any(row.runs and below_popularity(*row.results) for row in rows):
        text += f"\n{BELOW}: ranks below popularity.\n"
    if sum(bool(row.runs) for row in rows) > 1:
        text += "\nTPME: IISAN's composite of the three columns before it, over the table's rows; lower is better.\n"
    return text


def _names(result: dict[str, Any]) -> dict[str, str]:
    """Item tower and method of a result."""
    return {name: result[name] for name in ("item_tower", "method") if name in result}


def _scoped(axis: Axis, point: dict[str, str]) -> dict[tuple[str, str], str]:
    """What an axis sets at a point, by (stage or "", flag). Nothing but the target runs has a method."""
    sets = axis.settings(point[axis.name])
    scope = "target" if "method" in sets else ""
    return {(flag.rpartition(".")[0] or scope, flag.rpartition(".")[2]): value for flag, value in sets.items()}


def _words(flags: dict[str, list[str]]) -> list[str]:
    return [word for name, values in flags.items() for word in (f"--{name}", *values)]


def _short(value: str) -> str:
    """A value as a cell or in a name: of a folder only the last part."""
    folders = [value] if resolve(value).is_dir() else value.split(",")
    return printable(",".join(Path(one).name if resolve(one).is_dir() else one for one in folders))
