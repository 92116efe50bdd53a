"""What is said of a table's rows: the best, the second, and those that differ from the best by more than chance."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from transrec.errors import TransrecError
from transrec.reports.comparison import SIGNIFICANT, Wanted, same_targets, wanted
from transrec.reports.significance import holm, paired_tests
from transrec.reports.tables import BEST, METRICS, SECOND, distinct_baselines, shown_mean
from transrec.training.ranks import read_ranks

# The test of each of METRICS, and how it is told.
TESTS = {
    "HR@10": ("McNemar", "exact McNemar test, over several seeds the exact sign-flip test of each target's mean"),
    "NDCG@10": ("paired t", "paired t-test of each target's mean"),
}
VALUES: dict[str, Wanted] = dict(zip(METRICS, wanted(["hr", "ndcg"], [10]), strict=True))
DIFFERS = "†"


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: what the note below the table calls it.
        runs: folder and result.json's content of each finished run, by seed; of a baseline those of one run beside
            which it was ranked, with its own scores.
        baseline: its name; "" where the row is of runs.
    """

    name: str
    runs: Mapping[int, tuple[Path, dict[str, Any]]]
    baseline: str = ""

    @property
    def results(self) -> list[dict[str, Any]]:
        return [result for _, result in self.runs.values()]

    @cached_property
    def kept(self) -> dict[int, np.ndarray]:
        """Ranks of the test targets by seed, RANK [T]; not of runs that keep none, or none that can be read."""
        kept = {}
        for seed, (folder, _) in self.runs.items():
            try:
                kept[seed] = read_ranks(folder, "test", self.baseline)
            except TransrecError:
                continue
        return {seed: of for seed, of in kept.items() if len(of)}


@dataclass(frozen=True)
class Column:
    """What is said of one metric; lists have an entry for each row.

    Attributes:
        places: BEST, SECOND, or "" for other rows, for those without a run, for a row alone, and for baselines.
        p_values: against the row of runs with the highest mean, adjusted, for baselines by themselves; None of that
            row, and where there is no test.
        untested: why rows have no test, by their number.
    """

    places: list[str]
    p_values: list[float | None]
    untested: dict[int, str]

    def cell(self, number: int, text: str) -> str:
        """A row's cell, with DIFFERS where it differs from the best."""
        p = self.p_values[number]
        return f"{text}{DIFFERS}" if p is not None and p < SIGNIFICANT else text


def baselines_beside(rows: Sequence[Row]) -> list[Row]:
    """A row for each of the `distinct_baselines` of rows."""
    runs = [run for row in rows for run in row.runs.values()]
    found = distinct_baselines([result for _, result in runs])
    return [Row(of.label, {0: (runs[of.first][0], {"test": of.scores})}, of.name) for of in found]


def mark(rows: Sequence[Row], metric: str) -> Column:
    """The column of one of METRICS. Means that read the same are marked alike."""
    means = {
        number: statistics.mean(result["test"][metric] for result in row.results)
        for number, row in enumerate(rows)
        if row.runs and not row.baseline
    }
    if not means:
        return Column([""] * len(rows), [None] * len(rows), {})
    shown = {number: shown_mean(mean) for number, mean in means.items()} if len(means) > 1 else {}
    highest = sorted(set(shown.values()), key=float, reverse=True)[:2]
    place = dict(zip(highest, (BEST, SECOND), strict=False))
    best = max(means, key=lambda number: means[number])
    adjusted: dict[int, float] = {}
    untested = {}
    for family in (means.keys() - {best}, [number for number, row in enumerate(rows) if row.baseline]):
        p_values = {}
        for number in family:
            paired = _paired(rows[number], rows[best])
            if isinstance(paired, str):
                untested[number] = paired
            else:
                values = [np.stack([_values(metric, ranks) for ranks in of]) for of in paired]
                p_values[number] = paired_tests(*values)[TESTS[metric][0]]
        adjusted |= zip(p_values, holm([*p_values.values()]), strict=True)
    numbers = range(len(rows))
    return Column([place.get(shown.get(n, ""), "") for n in numbers], [adjusted.get(n) for n in numbers], untested)


def _paired(row: Row, best: Row) -> tuple[list[np.ndarray], list[np.ndarray]] | str:
    """What both rows keep of the seeds that both have, in the same order; or why they cannot be paired.

    A baseline has no seed: beside it all seeds of the best row are kept.
    """
    if not best.kept or not row.kept:
        return "the best row keeps no ranks that can be read" if row.kept else "no ranks that can be read are kept"
    seeds = sorted(best.kept if row.baseline else row.kept.keys() & best.kept.keys())
    if not seeds:
        return "no seed in common with the best row"
    of_best = [best.kept[seed] for seed in seeds]
    of_row = [*row.kept.values()] if row.baseline else [row.kept[seed] for seed in seeds]
    users, items = of_best[0]["user"], of_best[0]["item"]
    if not all(same_targets(kept, users, items) for kept in (*of_row, *of_best)):
        return "other targets than those of the best row"
    return of_row, of_best


def _values(metric: str, kept: np.ndarray) -> np.ndarray:
    """The metric of each target: float64 [T]."""
    values = VALUES[metric].of_each(kept["rank"].astype(np.float64))
    assert values is not None
    return values


def note(rows: Sequence[Row], columns: Mapping[str, Column]) -> str:
    """The line below a table: its seeds, tests, correction and level, and which rows have no test.

    Args:
        columns: by metric, as `mark` gives them; of the same rows.
    """
    counts = sorted(len(row.runs) for row in rows if row.runs and not row.baseline)
    if not counts:
        return "No run has finished."
    said = [f"Seeds per row: {counts[0]}{f' to {counts[-1]}' if counts[-1] > counts[0] else ''}."]
    if sum(bool(row.runs) for row in rows) < 2:
        return f"{said[0]} No test: there is no other row to compare with."
    if len(counts) > 1:
        said.append("The best of a column is bold, the second underlined; baselines are not marked so.")
    tested = {name: _tested(rows, column) for name, column in columns.items()}
    if any(tested.values()):
        tests = "; ".join(f"{name}: {TESTS[name][1]}, {count}" for name, count in tested.items() if count)
        said.append(
            f"{DIFFERS} differs from the best row at the {SIGNIFICANT:g} level, two-sided, with Holm's correction over "
            f"the comparisons of a column, those with baselines by themselves ({tests}). Rows are paired by target; a "
            f"target's mean is over the seeds that both rows have, beside a baseline over all of the best row's."
        )
    reasons: dict[str, dict[str, None]] = {}
    for name, column in columns.items():
        for number, why in sorted(column.untested.items()):
            reasons.setdefault(f"No test of {name}: {why}", {})[rows[number].name] = None
    said += [f"{why} ({', '.join(names)})." for why, names in reasons.items()]
    return " ".join(said)


def _tested(rows: Sequence[Row], column: Column) -> str:
    """How many comparisons a column has; "" for none."""
    of_baselines = [bool(row.baseline) for row, p in zip(rows, column.p_values, strict=True) if p is not None]
    counts = ((of_baselines.count(False), ""), (of_baselines.count(True), " with baselines"))
    return " and ".join(f"{count} comparison{'s' * (count > 1)}{of}" for count, of in counts if count)
