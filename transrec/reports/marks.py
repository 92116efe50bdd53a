"""Marks for the rows of a results table: the best, the second, and those that differ significantly from the best."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from transrec.errors import TransrecError
from transrec.reports.comparison import SIGNIFICANT, MetricAtCutoff, metrics_at, same_targets
from transrec.reports.significance import holm, paired_tests
from transrec.reports.tables import BEST, METRICS, SECOND, distinct_baselines, shown_mean
from transrec.training.ranks import read_ranks

# The significance test for each of METRICS, and its description in a table's note.
TESTS = {
    "HR@10": ("McNemar", "exact McNemar test, over several seeds the exact sign-flip test of each target's mean"),
    "NDCG@10": ("paired t", "paired t-test of each target's mean"),
}
METRICS_BY_NAME: dict[str, MetricAtCutoff] = dict(zip(METRICS, metrics_at(["hr", "ndcg"], [10]), strict=True))
DIFFERS = "†"


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: the row's name in the note below the table.
        runs: folder and result.json's content of each finished run, by seed; for a baseline, the folder of one run
            that evaluated it, with the baseline's own scores.
        baseline: the baseline's name; "" for a row of runs.
    """

    name: str
    runs: Mapping[int, tuple[Path, dict[str, Any]]]
    baseline: str = ""

    @property
    def results(self) -> list[dict[str, Any]]:
        return [result for _, result in self.runs.values()]

    @cached_property
    def ranks_by_seed(self) -> dict[int, np.ndarray]:
        """Ranks of the test targets by seed, RANK [T]; seeds whose ranks are missing or unreadable are left out."""
        kept = {}
        for seed, (folder, _) in self.runs.items():
            try:
                kept[seed] = read_ranks(folder, "test", self.baseline)
            except TransrecError:
                continue
        return {seed: ranks for seed, ranks in kept.items() if len(ranks)}


@dataclass(frozen=True)
class Column:
    """The marks of one metric; lists have an entry for each row.

    Attributes:
        places: BEST, SECOND, or "" for other rows. Rows without a run, baselines, and the only row of runs have "".
        p_values: p-values against the row of runs with the highest mean, adjusted separately for methods and for
            baselines; None for that row itself and for rows without a test.
        untested: the reason why a row has no test, by the row's number.
    """

    places: list[str]
    p_values: list[float | None]
    untested: dict[int, str]

    def cell(self, number: int, text: str) -> str:
        """Return a row's cell, with DIFFERS if the row differs significantly from the best."""
        p = self.p_values[number]
        return f"{text}{DIFFERS}" if p is not None and p < SIGNIFICANT else text


def baseline_rows(rows: Sequence[Row]) -> list[Row]:
    """Return a row for each of the `distinct_baselines` of the rows' runs."""
    runs = [run for row in rows for run in row.runs.values()]
    baselines = distinct_baselines([result for _, result in runs])
    return [Row(each.label, {0: (runs[each.first][0], {"test": each.scores})}, each.name) for each in baselines]


def mark(rows: Sequence[Row], metric: str) -> Column:
    """Return the marks for one of METRICS. Means that print the same get the same mark."""
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
            paired = _paired_ranks(rows[number], rows[best])
            if isinstance(paired, str):
                untested[number] = paired
            else:
                values = [np.stack([_values(metric, ranks) for ranks in of_seeds]) for of_seeds in paired]
                p_values[number] = paired_tests(*values)[TESTS[metric][0]]
        adjusted |= zip(p_values, holm([*p_values.values()]), strict=True)
    numbers = range(len(rows))
    return Column([place.get(shown.get(n, ""), "") for n in numbers], [adjusted.get(n) for n in numbers], untested)


def _paired_ranks(row: Row, best: Row) -> tuple[list[np.ndarray], list[np.ndarray]] | str:
    """Return both rows' ranks for the seeds that they share, in the same order, or why they cannot be paired.

    A baseline has no seed, so it is paired with all seeds of the best row.
    """
    if not best.ranks_by_seed or not row.ranks_by_seed:
        return (
            "the best row keeps no ranks that can be read"
            if row.ranks_by_seed
            else "no ranks that can be read are kept"
        )
    seeds = sorted(best.ranks_by_seed if row.baseline else row.ranks_by_seed.keys() & best.ranks_by_seed.keys())
    if not seeds:
        return "no seed in common with the best row"
    of_best = [best.ranks_by_seed[seed] for seed in seeds]
    of_row = [*row.ranks_by_seed.values()] if row.baseline else [row.ranks_by_seed[seed] for seed in seeds]
    users, items = of_best[0]["user"], of_best[0]["item"]
    if not all(same_targets(kept, users, items) for kept in (*of_row, *of_best)):
        return "its targets are not those of the best row"
    return of_row, of_best


def _values(metric: str, ranks: np.ndarray) -> np.ndarray:
    """Return the metric's value for each target: float64 [T]."""
    values = METRICS_BY_NAME[metric].per_target(ranks["rank"].astype(np.float64))
    assert values is not None
    return values


def note(rows: Sequence[Row], columns: Mapping[str, Column]) -> str:
    """Return the note below a table: its seeds, tests, correction and level, and which rows have no test.

    Args:
        columns: the result of `mark` for the same rows, by metric.
    """
    counts = sorted(len(row.runs) for row in rows if row.runs and not row.baseline)
    if not counts:
        return "No run has finished."
    sentences = [f"Seeds per row: {counts[0]}{f' to {counts[-1]}' if counts[-1] > counts[0] else ''}."]
    if sum(bool(row.runs) for row in rows) < 2:
        return f"{sentences[0]} No test: there is no other row to compare with."
    if len(counts) > 1:
        sentences.append("The best of a column is bold, the second underlined; baselines are not marked so.")
    tested = {name: _comparison_counts(rows, column) for name, column in columns.items()}
    if any(tested.values()):
        tests = "; ".join(f"{name}: {TESTS[name][1]}, {count}" for name, count in tested.items() if count)
        sentences.append(
            f"{DIFFERS} differs from the best row at the {SIGNIFICANT:g} level, two-sided, with Holm's correction over "
            f"the comparisons of a column, those with baselines by themselves ({tests}). Rows are paired by target; a "
            f"target's mean is over the seeds that both rows have, beside a baseline over all of the best row's."
        )
    reasons: dict[str, dict[str, None]] = {}
    for name, column in columns.items():
        for number, why in sorted(column.untested.items()):
            reasons.setdefault(f"No test of {name}: {why}", {})[rows[number].name] = None
    sentences += [f"{why} ({', '.join(names)})." for why, names in reasons.items()]
    return " ".join(sentences)


def _comparison_counts(rows: Sequence[Row], column: Column) -> str:
    """Return the number of a column's comparisons in words; "" if there are none."""
    of_baselines = [bool(row.baseline) for row, p in zip(rows, column.p_values, strict=True) if p is not None]
    counts = ((of_baselines.count(False), ""), (of_baselines.count(True), " with baselines"))
    return " and ".join(f"{count} comparison{'s' * (count > 1)}{of}" for count, of in counts if count)
