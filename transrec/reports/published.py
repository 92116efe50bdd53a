"""Figures published in papers, compared with ours.

They are read from a CSV, published.csv next to this file or the user's own, with one figure per line. An empty cell for
dataset, encoder, objective or method means that the source does not state it; such a cell matches every row.
"""

import csv
import io
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from transrec.errors import TransrecError, about_file
from transrec.paths import resolve
from transrec.reports.tables import ExtraColumn, costs
from transrec.untrusted import read_regular

SHIPPED = Path(__file__).with_name("published.csv")
FILE_BYTES = 2**24
# Published costs of a run: each one's key in result.json, and the factor from result.json's unit to the published unit.
COSTS = {
    "seconds_per_epoch": ("seconds_per_epoch", 1.0),
    "peak_memory_gb": ("peak_memory_mib", 2**20 / 1e9),
    "trainable_parameters": ("trainable_parameters", 1.0),
}
SHARE = re.compile(r"[A-Za-z]+@[1-9]\d*|MRR|AUC")
VALUE = re.compile(r"(\d+(?:\.\d+)?)(?:-(\d+(?:\.\d+)?))?")
NEEDED = ("paper", "metric", "value", "source")
ROW = ("dataset", "encoder", "objective", "method")
TO_FILL_IN = "left for you to fill in"


@dataclass(frozen=True)
class Figure:
    """A line of the CSV, whose columns are these fields in order.

    Attributes:
        paper, table: the paper and table that the figure belongs to; an empty table means all tables of the paper.
        dataset: the name of the dataset's folder.
        encoder: the encoder's name, of which only the last part counts, or several separated by commas; "id" for item
            IDs.
        method: the method's name in tables; a name without a variant matches all variants.
        metric: HR@10 and so on, as shares of 1, or one of COSTS.
        value: a number, or LOW-HIGH if the source gives a range.
        source: where the figure was published.
    """

    paper: str
    table: str
    dataset: str
    encoder: str
    objective: str
    method: str
    metric: str
    value: str
    source: str

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        low, _, high = self.value.partition("-")
        return float(low), float(high or low)

    def matches(self, row: Mapping[str, str]) -> bool:
        """Return whether the figure belongs to a table's row, given by its ROW values."""
        method = row["method"].partition(":")[0]
        cells = {name: getattr(self, name).casefold() for name in ROW}
        cells["encoder"] = ",".join(name.rpartition("/")[2] for name in cells["encoder"].split(","))
        return all(cell in ("", row[name].casefold(), name == "method" and method) for name, cell in cells.items())

    def difference(self, ours: float) -> float:
        """Return ours minus the published value; for a range, minus its nearer end, and 0 inside the range."""
        low, high = self.bounds
        return min(ours - low, 0.0) + max(ours - high, 0.0)


COLUMNS = tuple(field.name for field in fields(Figure))


def read_published(path: str | Path) -> list[Figure]:
    """Read the figures from a CSV with the header COLUMNS.

    Raises TransrecError, naming the file, line and column, for an invalid or repeated figure.
    """
    path = resolve(path)
    with about_file(path, "give another file with --published", "cannot be read"):
        content = read_regular(path, FILE_BYTES)
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        lines = [(reader.line_num, line) for line in reader if line]
    except UnicodeDecodeError as error:
        raise TransrecError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except csv.Error as error:
        raise TransrecError(f"{path}, line {reader.line_num}: is not CSV ({error}); mend the line") from error
    if not lines or tuple(lines[0][1]) != COLUMNS:
        raise TransrecError(f"{path}, line 1: must name the columns {','.join(COLUMNS)}")
    figures: dict[tuple[str, ...], tuple[int, Figure]] = {}
    for number, cells in lines[1:]:
        figure = _figure(f"{path}, line {number}", cells)
        key = tuple(cell.casefold() for cell in astuple(figure)[: COLUMNS.index("value")])
        first, _ = figures.setdefault(key, (number, figure))
        if first != number:
            raise TransrecError(f"{path}, line {number}: gives {figure.metric} of the same row as line {first}")
    return [figure for _, figure in figures.values()]


def _figure(where: str, cells: list[str]) -> Figure:
    if len(cells) != len(COLUMNS):
        raise TransrecError(f"{where}: has {len(cells)} cells; give {len(COLUMNS)}, {','.join(COLUMNS)}")
    figure = Figure(*(cell.strip() for cell in cells))
    for name in NEEDED:
        if not getattr(figure, name):
            raise TransrecError(f"{where}, column {name}: is empty")
    if figure.metric not in COSTS and not SHARE.fullmatch(figure.metric):
        raise TransrecError(
            f"{where}, column metric: {figure.metric!r} is neither a metric like HR@10 nor one of {', '.join(COSTS)}"
        )
    if not VALUE.fullmatch(figure.value) or figure.bounds[0] > figure.bounds[1]:
        raise TransrecError(f"{where}, column value: {figure.value!r} must be a number, or LOW-HIGH")
    if figure.metric not in COSTS and figure.bounds[1] > 1:
        raise TransrecError(f"{where}, column value: {figure.value!r} must be a share of 1; 9.09 % is 0.0909")
    return figure


@dataclass(frozen=True)
class Published:
    """The figures that a table may show.

    Attributes:
        figures: the figures, by descending precedence.
        always_shown: whether the table shows the columns even if no figure matches any of its rows.
    """

    figures: Sequence[Figure] = ()
    always_shown: bool = False

    def matching(self, row: Mapping[str, str]) -> dict[str, Figure]:
        """Return the figures of a table's row, by metric."""
        by_metric: dict[str, Figure] = {}
        for figure in self.figures:
            if figure.matches(row):
                by_metric.setdefault(figure.metric, figure)
        return by_metric


def select(own: str | None, paper: str = "", table: str = "") -> Published:
    """Return the figures from the user's own file and the shipped ones, for one table of a paper or for all papers.

    Without a paper, shipped figures whose source names no dataset are left out: no row can be compared with them.
    """
    of_user, shipped = read_published(own) if own else [], read_published(SHIPPED)
    if not paper:
        return Published([*of_user, *(figure for figure in shipped if figure.dataset)])
    names = paper.casefold(), {"", table.casefold()}
    fit = [fig for fig in (*of_user, *shipped) if fig.paper.casefold() == names[0] and fig.table.casefold() in names[1]]
    return Published(fit, always_shown=True)


def published_columns(
    figures: Sequence[Mapping[str, Figure]], rows: Sequence[Sequence[dict[str, Any]]]
) -> list[ExtraColumn]:
    """Return the columns `published` and `difference`: our value, as tables show it, minus the published one.

    Args:
        figures: the figures of each row, by metric.
        rows: the results of each row's runs.
    """
    pairs = [
        {metric: (figure, _ours(metric, results)) for metric, figure in of_row.items()}
        for of_row, results in zip(figures, rows, strict=True)
    ]
    known = [
        {metric: figure.difference(ours) for metric, (figure, ours) in of_row.items() if ours is not None}
        for of_row in pairs
    ]
    return [
        ExtraColumn(
            "published",
            ["; ".join(f"{metric} {fig.value}" for metric, fig in of_row.items()) or TO_FILL_IN for of_row in figures],
            [{f"published {metric}": figure.value for metric, figure in of_row.items()} for of_row in figures],
        ),
        ExtraColumn(
            "difference",
            [
                "; ".join(f"{name} {_difference_text(name, value)}" for name, value in of_row.items()) or "-"
                for of_row in known
            ],
            [{f"{metric} less published": value for metric, value in of_row.items()} for of_row in known],
        ),
    ]


def published_note(figures: Sequence[Mapping[str, Figure]]) -> str:
    """Return the note below a table that shows published figures."""
    notes = []
    if sources := dict.fromkeys(f"{figure.paper}: {figure.source}" for row in figures for figure in row.values()):
        notes.append(f"Published figures: {'; '.join(sources)}.")
        notes.append("A difference is ours less the published one; within a published range it is 0.")
    if not all(figures):
        notes.append(
            f"Rows whose published figure is {TO_FILL_IN} take it from --published FILE (docs/reproducing.md)."
        )
    return " ".join(notes)


def _difference_text(metric: str, difference: float) -> str:
    return f"{difference:+,.1f}" if metric in COSTS else f"{difference:+.4f}"


def _ours(metric: str, results: Sequence[dict[str, Any]]) -> float | None:
    """Return the value of a row's runs as tables show it, in the published unit; None if any run lacks the metric."""
    if metric in COSTS and results:
        name, unit = COSTS[metric]
        return unit * costs(results)[name]
    values = [result["test"][metric] for result in results if metric in result["test"]]
    return statistics.mean(values) if values and len(values) == len(results) else None
