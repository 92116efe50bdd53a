"""Results of runs as rows of tables, and tables as Markdown, CSV and LaTeX."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transrec.baselines import BASELINES
from transrec.errors import TransrecError, printable
from transrec.paths import resolve
from transrec.untrusted import read_json

METRICS = ("HR@10", "NDCG@10")
# The content of every result.json: scores by metric (TESTED is missing for a run with --no_test), and numbers.
TESTED = ("test", "popularity")
SCORES = (*TESTED, "validation")
NUMBERS = (
    *("trainable_parameters", "total_parameters", "epochs_trained", "checkpoint_bytes"),
    *("seconds_per_epoch", "wall_seconds", "peak_memory_mib", "peak_host_memory_mib"),
)
COLUMNS = (*METRICS, "trainable parameters", "seconds per epoch", "peak memory, MiB")
# The kinds of emphasis of a cell, and their form in Markdown and in pandas' Styler.
BEST, SECOND = "best", "second"
MARKDOWN = {BEST: ("**", "**"), SECOND: ("<u>", "</u>")}
LATEX = {BEST: "textbf:--rwrap", SECOND: "underline:--rwrap"}
# The kind of emphasis by line, not counting the header, and column.
Emphasis = Mapping[tuple[int, int], str]


@dataclass(frozen=True)
class BaselineScores:
    """A baseline that was evaluated along with runs.

    Attributes:
        name: the name under which runs store the baseline's ranks.
        label: the baseline's name in tables.
        scores: the baseline's test metrics.
        first: the index of the first result with these scores.
    """

    name: str
    label: str
    scores: dict[str, float]
    first: int


@dataclass(frozen=True)
class ExtraColumn:
    """An additional column, after COLUMNS.

    Attributes:
        name: the column's heading.
        cells: the text for each row; "-" if there is none.
        numbers: the values for each row in the CSV, by name.
    """

    name: str
    cells: list[str]
    numbers: list[dict[str, Any]]


def read_result(folder: str | Path, tested: bool = True) -> dict[str, Any]:
    """Read result.json of a run.

    Args:
        tested: whether the file must have test metrics.

    Raises TransrecError if the run has not finished, if the file is damaged, or if required test metrics are missing.
    """
    path = resolve(folder) / "result.json"
    if not path.exists():
        raise TransrecError(
            f"{folder}: has no result.json, the run has not finished; continue it with --resume {folder}"
        )
    try:
        result = read_json(path)
        damage = _damage(result)
    except ValueError:
        damage = "is not JSON"
    if damage:
        raise TransrecError(f"{path}: damaged, {damage}; --resume {folder} writes it again")
    if tested and "test" not in result:
        raise TransrecError(f"{path}: the run has --no_test; --resume {folder} --test ranks the test targets")
    return result


def _damage(result: Any) -> str:
    """Return what is wrong with the content of a result.json; "" if nothing is."""
    if not isinstance(result, dict):
        return "holds no result"
    untested = TESTED if result.keys().isdisjoint(TESTED) else ()
    for name in (*(score for score in SCORES if score not in untested), "phase_seconds"):
        scores = result.get(name)
        if not isinstance(scores, dict) or not all(map(_is_number, scores.values())):
            return f"{name!r} must be numbers by name"
        if name in SCORES and not scores.keys() >= {*METRICS}:
            return f"{name!r} lacks {' or '.join(METRICS)}"
    baselines = result.get("baselines", {})
    if not isinstance(baselines, dict):
        return "'baselines' must be metrics by name"
    for name, scores in baselines.items():
        if not isinstance(scores, dict) or not scores.keys() >= {*METRICS} or not all(map(_is_number, scores.values())):
            return f"baseline {name!r} must be numbers by name, {' and '.join(METRICS)} among them"
    wrong = [name for name in NUMBERS if not _is_number(result.get(name))]
    return f"{wrong[0]!r} must be a number" if wrong else ""


def baselines_of(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the test metrics of the baselines that a run evaluated, by the baseline's name."""
    return {"popularity": result["popularity"], **result.get("baselines", {})}


def distinct_baselines(results: Sequence[dict[str, Any]]) -> list[BaselineScores]:
    """Return the baselines in the results; one appears several times if its METRICS differ between results."""
    labels = {name: BASELINES.get(name).label for name in BASELINES.names()}
    distinct: dict[tuple[str, ...], BaselineScores] = {}
    for place, result in enumerate(results):
        for name, scores in baselines_of(result).items():
            tower = f" ({result['item_tower']})" if name == "zero_shot" and "item_tower" in result else ""
            label = f"{labels.get(name, name)}{tower}"
            distinct.setdefault((label, *metric_cells(scores)), BaselineScores(name, label, scores, place))
    return list(distinct.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def below_popularity(*results: dict[str, Any]) -> bool:
    """Return whether the mean HR@10 of the results is below that of ranking by popularity."""
    test, popularity = (sum(result[part]["HR@10"] for result in results) for part in ("test", "popularity"))
    return test < popularity


def result_row(*results: dict[str, Any]) -> list[str]:
    """Return the COLUMNS of a test result, or of results over several seeds: metrics with spread, and `costs`."""
    seconds, parameters, memory = costs(results).values()
    scores = metric_cells(*(result["test"] for result in results))
    return [*scores, f"{parameters:,}", f"{seconds:.2f}", f"{memory:,.0f}"]


def costs(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the costs of a row's runs, by the names of result.json.

    Seconds are the mean over the runs, parameters are those of the first run, and memory is the maximum.
    """
    return {
        "seconds_per_epoch": statistics.mean(result["seconds_per_epoch"] for result in results),
        "trainable_parameters": results[0]["trainable_parameters"],
        "peak_memory_mib": max(result["peak_memory_mib"] for result in results),
    }


def metric_cells(*metrics: dict[str, float]) -> list[str]:
    """Return HR@10 and NDCG@10 as cells: the mean, and the sample standard deviation if there are several results."""
    return [mean_and_spread([scores[name] for scores in metrics]) for name in METRICS]


def mean_and_spread(values: list[float]) -> str:
    """Return `0.0416`, or `0.0416 ± 0.0012` for several values: mean and sample standard deviation."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{shown_mean(statistics.mean(values))}{spread}"


def shown_mean(mean: float) -> str:
    """Return a metric's mean as tables show it."""
    return f"{mean:.4f}"


def markdown(header: list[str], rows: list[list[str]], emphasis: Emphasis | None = None) -> str:
    """Return a Markdown table with the first column left-aligned and all others right-aligned.

    Cells are plain text: characters with a meaning in Markdown or HTML are escaped.

    Args:
        emphasis: BEST (bold) or SECOND (underlined) for the emphasised cells.
    """
    header, *rows = [[markdown_text(cell) for cell in line] for line in (header, *rows)]
    for (line, column), kind in (emphasis or {}).items():
        rows[line][column] = rows[line][column].join(MARKDOWN[kind])
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def text(cells: list[str]) -> str:
        aligned = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(aligned)} |"

    rule = [":" + "-" * (w - 1) if column == 0 else "-" * (w - 1) + ":" for column, w in enumerate(widths)]
    return "\n".join([text(header), f"| {' | '.join(rule)} |", *(text(row) for row in rows)])


def markdown_text(text: str) -> str:
    """Return plain text as Markdown: characters with a meaning in Markdown or HTML are escaped."""
    special = {character: f"\\{character}" for character in "\\|`[]"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
    return "".join(special.get(character, character) for character in printable(text))


def latex(header: list[str], rows: list[list[str]], emphasis: Emphasis | None = None) -> str:
    """Return a LaTeX tabular for the booktabs package; `emphasis` is as for `markdown`."""
    from pandas import DataFrame

    shown = [list(map(printable, line)) for line in (header, *rows)]
    frame = DataFrame(shown[1:], columns=shown[0])
    styles = [["" for _ in line] for line in rows]
    for (line, column), kind in (emphasis or {}).items():
        styles[line][column] = LATEX[kind]
    style = frame.style
    if emphasis:
        style.apply(lambda _: DataFrame(styles, columns=frame.columns), axis=None)
    style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    text = style.to_latex(hrules=True, column_format="l" + "r" * (len(header) - 1))
    return text.rstrip().replace("±", r"$\pm$").replace("†", r"$^\dagger$")


def comma_separated(rows: list[dict[str, Any]]) -> str:
    """Return CSV with a header line; if a row lacks a column, its cell is empty."""
    from pandas import DataFrame

    shown = [
        {printable(name): printable(cell) if isinstance(cell, str) else cell for name, cell in row.items()}
        for row in rows
    ]
    # dtype=object, so that integers stay integers even if another row's cell is empty.
    return DataFrame(shown, dtype=object).to_csv(index=False, lineterminator="\n")
