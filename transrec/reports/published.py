"""Figures that papers publish, beside ours.

They stand in a CSV, published.csv beside this file or the user's own, a figure on each line. An empty cell of dataset,
encoder, objective or method means that the source does not tell it: the figure stands beside every row of its table.
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
from transrec.reports.tables import Further, costs
from transrec.untrusted import read_regular

SHIPPED = Path(__file__).with_name("published.csv")
FILE_BYTES = 2**24
# What is published of a run's cost, and how many of its unit one of result.json's is.
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
    """A line of the CSV; its columns, in order, are these fields.

    Attributes:
        paper, table: where the figure belongs; an empty table stands for all of the paper's.
        dataset: the name of its folder.
        encoder: its name, of which the last part counts, or several divided by commas; "id" of item IDs.
        method: what tables call it; without a variant it stands for all variants.
        metric: HR@10 and so on, as shares of 1, or one of COSTS.
        value: a number, or LOW-HIGH where the source tells a range.
        source: where it is written.
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
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        low, _, high = self.value.partition("-")
        return float(low), float(high or low)

    def is_of(self, row: Mapping[str, str]) -> bool:
        """Whether it is of a table's row, whose ROW is given."""
        method = row["method"].partition(":")[0]
        told = {name: getattr(self, name).casefold() for name in ROW}
        told["encoder"] = ",".join(name.rpartition("/")[2] for name in told["encoder"].split(","))
        return all(said in ("", row[name].casefold(), name == "method" and method) for name, said in told.items())

    def difference(self, ours: float) -> float:
        """Ours less the value; of a range less its nearer end, and 0 within it."""
        low, high = self.ends
        return min(ours - low, 0.0) + max(ours - high, 0.0)


COLUMNS = tuple(field.name for field in fields(Figure))


def read_published(path: str | Path) -> list[Figure]:
    """The figures of a CSV with a header of COLUMNS.

    Raises TransrecError naming the file, and the line and the column, of what is no figure or stands there twice.
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
            raise TransrecError(f"{path}, line {number}: tells {figure.metric} of the same row as line {first}")
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
    if not VALUE.fullmatch(figure.value) or figure.ends[0] > figure.ends[1]:
        raise TransrecError(f"{where}, column value: {figure.value!r} must be a number, or LOW-HIGH")
    if figure.metric not in COSTS and figure.ends[1] > 1:
        raise TransrecError(f"{where}, column value: {figure.value!r} must be a share of 1; 9.09 % is 0.0909")
    return figure


@dataclass(frozen=True)
class Published:
    """The figures that a table may show.

    Attributes:
        figures: those that go before others first.
        wanted: whether the table shows them where none is of its rows, too.
    """

    figures: Sequence[Figure] = ()
    wanted: bool = False

    def of(self, row: Mapping[str, str]) -> dict[str, Figure]:
        """The figures of a table's row, by metric."""
        found: dict[str, Figure] = {}
        for figure in self.figures:
            if figure.is_of(row):
                found.setdefault(figure.metric, figure)
        return found


def select(own: str | None, paper: str = "", table: str = "") -> Published:
    """The figures of the user's own file and those that are shipped: of a paper's table, or of any.

    Without a paper a shipped figure whose source tells no dataset is none that rows could be compared with.
    """
    of_user, shipped = read_published(own) if own else [], read_published(SHIPPED)
    if not paper:
        return Published([*of_user, *(figure for figure in shipped if figure.dataset)])
    names = paper.casefold(), {"", table.casefold()}
    fit = [one for one in (*of_user, *shipped) if one.paper.casefold() == names[0] and one.table.casefold() in names[1]]
    return Published(fit, wanted=True)


def published_columns(
    figures: Sequence[Mapping[str, Figure]], rows: Sequence[Sequence[dict[str, Any]]]
) -> list[Further]:
    """The columns `published`, and `difference`: ours, as tables show a row's runs, less it.

    Args:
        figures: of each row, by metric.
        rows: the results of each row's runs.
    """
    of = [
        {metric: (figure, _ours(metric, results)) for metric, figure in told.items()}
        for told, results in zip(figures, rows, strict=True)
    ]
    known = [{m: figure.difference(ours) for m, (figure, ours) in told.items() if ours is not None} for told in of]
    return [
        Further(
            "published",
            ["; ".join(f"{metric} {one.value}" for metric, one in told.items()) or TO_FILL_IN for told in figures],
            [{f"published {metric}": one.value for metric, one in told.items()} for told in figures],
        ),
        Further(
            "difference",
            ["; ".join(f"{metric} {_shown(metric, value)}" for metric, value in told.items()) or "-" for told in known],
            [{f"{metric} less published": value for metric, value in told.items()} for told in known],
        ),
    ]


def published_note(figures: Sequence[Mapping[str, Figure]]) -> str:
    """What is said below a table that shows them."""
    said = []
    if sources := dict.fromkeys(f"{one.paper}: {one.source}" for told in figures for one in told.values()):
        said.append(f"Published figures: {'; '.join(sources)}.")
        said.append("A difference is ours less the published one; within a published range it is 0.")
    if not all(figures):
        said.append(f"Rows whose published figure is {TO_FILL_IN} take it from --published FILE (docs/reproducing.md).")
    return " ".join(said)


def _shown(metric: str, difference: float) -> str:
    return f"{difference:+,.1f}" if metric in COSTS else f"{difference:+.4f}"


def _ours(metric: str, results: Sequence[dict[str, Any]]) -> float | None:
    """What a row's runs have, as tables show it, in the unit of published figures; None where a run lacks it."""
    if metric in COSTS and results:
        name, unit = COSTS[metric]
        return unit * costs(results)[name]
    values = [result["test"][metric] for result in results if metric in result["test"]]
    return statistics.mean(values) if values and len(values) == len(results) else None
