"""The data of a report: finished runs as rows, their epochs, and groups of rows with the same test targets."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transrec.baselines import BASELINES
from transrec.errors import TransrecError, about_file, reason_of
from transrec.reports.comparison import Comparison, distinguishing_settings, group_by_method
from transrec.reports.efficiency import TPME_KEYS
from transrec.reports.results import frame, read_results, summary
from transrec.reports.tpme import tpme
from transrec.settings import Settings, read_settings
from transrec.training.ranks import ranks_file, read_ranks
from transrec.untrusted import parse_json, read_regular

if TYPE_CHECKING:
    from pandas import DataFrame

# Size limit of metrics.jsonl, in which an epoch takes a few hundred bytes.
METRICS_BYTES = 2**26
LONGEST_DIFFERENCE = 60
# Far above anything that a run measures. Integers in JSON may exceed the range of floats.
LARGEST = 1e300


@dataclass(frozen=True)
class Row:
    """Runs that differ only in their seed.

    Attributes:
        number: the row's number in tables and plots, from 1.
        data: the dataset's folder, or its name if the settings are unknown.
        runs: the runs' rows of `transrec.results`.
        results: the content of each run's result.json, by folder.
        settings: the settings of the first run; None if it has no options.json.
        numbers: `summary` of the runs, and their TPME among all rows.
    """

    number: int
    name: str
    data: str
    runs: "DataFrame"
    results: dict[Path, dict[str, Any]]
    settings: Settings | None
    numbers: dict[str, float | int]

    @property
    def dataset(self) -> str:
        """The dataset's name."""
        return str(self.runs["dataset"].iloc[0])

    @property
    def is_tested(self) -> bool:
        return all("test" in result for result in self.results.values())

    @property
    def label(self) -> str:
        return f"{self.number} {self.name}"


def read_rows(folders: Sequence[str | Path], plugins: Sequence[str | Path] = ()) -> list[Row]:
    """Read the runs in folders, given as for `transrec.results`; runs that differ only in their seed are one row.

    Args:
        plugins: files that may be executed, including all plugins that the runs were started with.

    Raises TransrecError as `transrec.results` and `read_settings` do.
    """
    results = read_results(*folders)
    settings = {folder: read_settings(folder, plugins) for folder in results if (folder / "options.json").exists()}
    groups = [*group_by_method(settings), *([folder] for folder in results if folder not in settings)]
    names = _names(groups, results, settings)
    frames = [frame({folder: results[folder] for folder in group}) for group in groups]
    numbers = [summary(runs) for runs in frames]
    seconds, parameters, memory = ([of_row[name] for of_row in numbers] for name in TPME_KEYS)
    rows = []
    for place, (group, runs, value) in enumerate(zip(groups, frames, tpme(seconds, parameters, memory), strict=True)):
        first = settings.get(group[0])
        rows.append(
            Row(
                number=place + 1,
                name=names[place],
                data=str(first.data.dataset) if first else str(runs["dataset"].iloc[0]),
                runs=runs,
                results={folder: results[folder] for folder in group},
                settings=first,
                numbers=numbers[place] | ({"TPME": value} if len(groups) > 1 else {}),
            )
        )
    return rows


def _names(
    groups: Sequence[list[Path]], results: dict[Path, dict[str, Any]], settings: dict[Path, Settings]
) -> list[str]:
    """Return the name of each group; groups with the same name also get the settings that distinguish them."""
    names = [str(results[folder].get("name") or results[folder].get("method") or folder.name) for folder, *_ in groups]
    longer_names = []
    for name, (folder, *_) in zip(names, groups, strict=True):
        alike = [other[0] for other, its in zip(groups, names, strict=True) if its == name]
        differing = differing_flags([settings.get(other) for other in alike]) - {"dataset"}
        own = distinguishing_settings(settings[folder]) if folder in settings else {}
        more = ", ".join(f"{flag} {own.get(flag)}" for flag in sorted(differing))
        longer_names.append(f"{name} ({more})" if more and len(more) <= LONGEST_DIFFERENCE else name)
    keys = [
        (name, str(results[folder].get("dataset"))) for name, (folder, *_) in zip(longer_names, groups, strict=True)
    ]
    return [
        key[0] if keys.count(key) == 1 else f"{key[0]} ({folder.name})"
        for key, (folder, *_) in zip(keys, groups, strict=True)
    ]


def differing_flags(settings_of_runs: Iterable[Settings | None]) -> set[str]:
    """Return the flags that distinguish methods and have more than one value in the known settings."""
    known = [distinguishing_settings(settings) for settings in settings_of_runs if settings]
    flags = {flag for values in known for flag in values}
    return {flag for flag in flags if len({repr(values.get(flag, "")) for values in known}) > 1}


def read_epochs(folder: Path) -> list[dict[str, float]]:
    """Return the numbers of each epoch in a run's metrics.jsonl.

    Raises TransrecError if the file is missing, cannot be read, or is damaged.
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        raise TransrecError(f"{path}: is not there")
    try:
        with about_file(path, what="cannot be read"):
            lines = [parse_json(line) for line in read_regular(path, METRICS_BYTES).splitlines()]
    except ValueError as error:
        raise TransrecError(f"{path}: damaged ({reason_of(error)})") from error
    if not lines or not all(isinstance(line, dict) and _is_number(line.get("epoch")) for line in lines):
        raise TransrecError(f"{path}: holds no epochs")
    return [{name: value for name, value in line.items() if _is_number(value)} for line in lines]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


@dataclass(frozen=True)
class ComparableRows:
    """Rows that were evaluated on the same test targets.

    Attributes:
        comparison: the comparison of the rows and of the baselines whose ranks the rows' runs stored.
        rows: the rows, in the order of `comparison.methods`.
    """

    comparison: Comparison
    rows: list[Row]

    @property
    def heading(self) -> str:
        """The dataset and the numbers of the rows, in words."""
        return f"{self.rows[0].dataset}, rows {', '.join(str(row.number) for row in self.rows)}"

    @property
    def baselines(self) -> list[str]:
        """The names of `comparison.baselines`."""
        return [baseline.name for baseline in self.comparison.baselines]

    @property
    def heads(self) -> list[str]:
        """The column headings for `comparison.compared`."""
        return [*(str(row.number) for row in self.rows), *self.baselines]


def group_by_targets(rows: Sequence[Row], plugins: Sequence[str | Path] = ()) -> tuple[list[ComparableRows], list[str]]:
    """Return rows grouped by their test targets, and notes about the runs whose ranks cannot be compared."""
    groups: dict[str, list[Path]] = {}
    notes = []
    for row in rows:
        if row.settings is None:
            notes.append(f"{row.label}: not compared, for its settings are not known")
            continue
        seeds = set()
        for folder, result in row.results.items():
            if (seed := str(result.get("seed"))) in seeds:
                notes.append(f"{row.label}: {folder} is of seed {seed}, too, and is not compared")
                continue
            seeds.add(seed)
            try:
                kept = read_ranks(folder, "test")
                targets = hashlib.sha256(kept["user"].tobytes() + kept["item"].tobytes()).hexdigest()
                groups.setdefault(f"{row.data} {targets}", []).append(folder)
            except TransrecError as error:
                notes.append(f"{row.label}: {error}")
    comparisons = []
    for folders in groups.values():
        if comparison := _comparison(folders, plugins, notes):
            members = [next(row for row in rows if method.folders[0] in row.results) for method in comparison.methods]
            comparisons.append(ComparableRows(comparison, members))
    return comparisons, list(dict.fromkeys(notes))


def _comparison(folders: list[Path], plugins: Sequence[str | Path], notes: list[str]) -> Comparison | None:
    """Compare the runs and their stored baselines; if the baselines cannot be read, add a note and omit them."""
    stored = tuple(
        name for name in BASELINES.names() if any(ranks_file(folder, "test", name).exists() for folder in folders)
    )
    for baselines in dict.fromkeys((stored, ())):
        try:
            return Comparison(folders, plugins=plugins, baselines=baselines)
        except TransrecError as error:
            notes.append(str(error))
    return None
