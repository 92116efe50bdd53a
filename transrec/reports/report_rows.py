"""What a report is made of: finished runs as rows, their epochs, and those that were evaluated on the same targets."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transrec.baselines import BASELINES
from transrec.errors import TransrecError, about_file, reason_of
from transrec.reports.comparison import Comparison, grouped, telling
from transrec.reports.efficiency import TPME_OF
from transrec.reports.results import frame, read_results, summary
from transrec.reports.tpme import tpme
from transrec.settings import Settings, read_settings
from transrec.training.ranks import ranks_file, read_ranks
from transrec.untrusted import parse_json, read_regular

if TYPE_CHECKING:
    from pandas import DataFrame

# A line of an epoch has some hundred bytes.
METRICS_BYTES = 2**26
LONGEST_DIFFERENCE = 60
# Nothing that a run measures comes near it; whole numbers of JSON may be larger than any float.
LARGEST = 1e300


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone.

    Attributes:
        number: from 1, as tables and plots call it.
        data: the dataset's folder, or its name where the settings are not known.
        runs: rows of `transrec.results`.
        results: what result.json of each run holds, by folder.
        settings: of the first run; None where options.json is not there.
        numbers: `summary` of the runs, and TPME among all rows.
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
    def told(self) -> str:
        return f"{self.number} {self.name}"


def read_rows(folders: Sequence[str | Path], plugins: Sequence[str | Path] = ()) -> list[Row]:
    """The runs of folders, as `transrec.results` takes them, those that differ in their seed alone as one row.

    Args:
        plugins: files that may run, among them all that the runs were started with.

    Raises TransrecError as `transrec.results` and `read_settings`.
    """
    results = read_results(*folders)
    settings = {folder: read_settings(folder, plugins) for folder in results if (folder / "options.json").exists()}
    groups = [*grouped(settings), *([folder] for folder in results if folder not in settings)]
    names = _names(groups, results, settings)
    frames = [frame({folder: results[folder] for folder in group}) for group in groups]
    numbers = [summary(of) for of in frames]
    seconds, parameters, memory = ([of[name] for of in numbers] for name in TPME_OF)
    rows = []
    for place, (group, of, composite) in enumerate(zip(groups, frames, tpme(seconds, parameters, memory), strict=True)):
        first = settings.get(group[0])
        rows.append(
            Row(
                number=place + 1,
                name=names[place],
                data=str(first.data.dataset) if first else str(of["dataset"].iloc[0]),
                runs=of,
                results={folder: results[folder] for folder in group},
                settings=first,
                numbers=numbers[place] | ({"TPME": composite} if len(groups) > 1 else {}),
            )
        )
    return rows


def _names(
    groups: Sequence[list[Path]], results: dict[Path, dict[str, Any]], settings: dict[Path, Settings]
) -> list[str]:
    """What each group is called: names that several have are followed by what tells them apart."""
    names = [str(results[folder].get("name") or results[folder].get("method") or folder.name) for folder, *_ in groups]
    told = []
    for name, (folder, *_) in zip(names, groups, strict=True):
        alike = [other[0] for other, its in zip(groups, names, strict=True) if its == name]
        differing = differences([settings.get(other) for other in alike]) - {"dataset"}
        own = telling(settings[folder]) if folder in settings else {}
        more = ", ".join(f"{flag} {own.get(flag)}" for flag in sorted(differing))
        told.append(f"{name} ({more})" if more and len(more) <= LONGEST_DIFFERENCE else name)
    kept = [(name, str(results[folder].get("dataset"))) for name, (folder, *_) in zip(told, groups, strict=True)]
    return [
        of[0] if kept.count(of) == 1 else f"{of[0]} ({folder.name})"
        for of, (folder, *_) in zip(kept, groups, strict=True)
    ]


def differences(of: Iterable[Settings | None]) -> set[str]:
    """The flags, of those that tell methods apart, whose values are not one in all settings that are known."""
    known = [telling(settings) for settings in of if settings]
    flags = {flag for values in known for flag in values}
    return {flag for flag in flags if len({repr(values.get(flag, "")) for values in known}) > 1}


def read_epochs(folder: Path) -> list[dict[str, float]]:
    """The numbers of each epoch in a run's metrics.jsonl.

    Raises TransrecError where it is not there, cannot be read, or is damaged.
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
class Compared:
    """Rows that were evaluated on the same test targets.

    Attributes:
        comparison: of them and of the baselines whose ranks they keep.
        rows: as `comparison.methods`, in their order.
    """

    comparison: Comparison
    rows: list[Row]

    @property
    def baselines(self) -> list[str]:
        """What `comparison.baselines` are called."""
        return [baseline.name for baseline in self.comparison.baselines]

    @property
    def heads(self) -> list[str]:
        """How columns of `comparison.compared` are headed."""
        return [*(str(row.number) for row in self.rows), *self.baselines]


def compared(rows: Sequence[Row], plugins: Sequence[str | Path] = ()) -> tuple[list[Compared], list[str]]:
    """Rows by their test targets, and sentences about those whose ranks cannot be compared."""
    groups: dict[str, list[Path]] = {}
    notes = []
    for row in rows:
        if row.settings is None:
            notes.append(f"{row.told}: not compared, for its settings are not known")
            continue
        seeds = set()
        for folder, result in row.results.items():
            if (seed := str(result.get("seed"))) in seeds:
                notes.append(f"{row.told}: {folder} is of seed {seed}, too, and is not compared")
                continue
            seeds.add(seed)
            try:
                kept = read_ranks(folder, "test")
                targets = hashlib.sha256(kept["user"].tobytes() + kept["item"].tobytes()).hexdigest()
                groups.setdefault(f"{row.data} {targets}", []).append(folder)
            except TransrecError as error:
                notes.append(f"{row.told}: {error}")
    found = []
    for folders in groups.values():
        if comparison := _comparison(folders, plugins, notes):
            of = [next(row for row in rows if method.folders[0] in row.results) for method in comparison.methods]
            found.append(Compared(comparison, of))
    return found, list(dict.fromkeys(notes))


def _comparison(folders: list[Path], plugins: Sequence[str | Path], notes: list[str]) -> Comparison | None:
    """Of the runs and of all baselines that they keep; without those where they cannot be read, which is noted."""
    kept = tuple(name for name in BASELINES.names() if any(ranks_file(of, "test", name).exists() for of in folders))
    for baselines in dict.fromkeys((kept, ())):
        try:
            return Comparison(folders, plugins=plugins, baselines=baselines)
        except TransrecError as error:
            notes.append(str(error))
    return None
