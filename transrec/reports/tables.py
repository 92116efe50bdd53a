"""Results of runs as rows, and rows as Markdown, CSV and LaTeX."""

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
# What every result.json holds: scores by metric, the first two unless the run was told --no_test, and numbers.
TESTED = ("test", "popularity")
SCORES = (*TESTED, "validation")
NUMBERS = (
    *("trainable_parameters", "total_parameters", "epochs_trained", "checkpoint_bytes"),
    *("seconds_per_epoch", "wall_seconds", "peak_memory_mib", "peak_host_memory_mib"),
)
COLUMNS = (*METRICS, "trainable parameters", "seconds per epoch", "peak memory, MiB")
# How a cell stands out, and what that is in Markdown and to the Styler of pandas.
BEST, SECOND = "best", "second"
MARKDOWN = {BEST: ("**", "**"), SECOND: ("<u>", "</u>")}
LATEX = {BEST: "textbf:--rwrap", SECOND: "underline:--rwrap"}
# By line, not counting the header, and column.
Emphasis = Mapping[tuple[int, int], str]


@dataclass(frozen=True)
class BaselineScores:
    """A baseline beside runs.

    Attributes:
        name: by which runs keep its ranks.
        label: what tables call it.
        scores: its test metrics.
        first: the place, among the results, of the first that has these scores.
    """

    name: str
    label: str
    scores: dict[str, float]
    first: int


@dataclass(frozen=True)
class Further:
    """A column behind COLUMNS.

    Attributes:
        cells: by row; "-" where there is nothing to tell.
        numbers: by row, what the CSV has of it by name.
    """

    name: str
    cells: list[str]
    numbers: list[dict[str, Any]]


def read_result(folder: str | Path, tested: bool = True) -> dict[str, Any]:
    """result.json of a run.

    Args:
        tested: whether it must hold what comes of the test targets.

    Raises TransrecError when the run has not finished, the file is damaged, or a test is missing that it must hold.
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
        raise TransrecError(f"{path}: damaged, {damage}; --resume {folder} writes it anew")
    if tested and "test" not in result:
        raise TransrecError(f"{path}: the run was told --no_test; --resume {folder} --test ranks the test targets")
    return result


def _damage(result: Any) -> str:
    """What is wrong with the content of a result.json; "" when nothing is."""
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
    """Test metrics of what was ranked without training beside a run, by the baseline's name."""
    return {"popularity": result["popularity"], **result.get("baselines", {})}


def distinct_baselines(results: Sequence[dict[str, Any]]) -> list[BaselineScores]:
    """The baselines beside results, each as often as its METRICS differ among them."""
    labels = {name: BASELINES.get(name).label for name in BASELINES.names()}
    found: dict[tuple[str, ...], BaselineScores] = {}
    for place, result in enumerate(results):
        for name, scores in baselines_of(result).items():
            of = f" ({result['item_tower']})" if name == "zero_shot" and "item_tower" in result else ""
            told = f"{labels.get(name, name)}{of}"
            found.setdefault((told, *metric_cells(scores)), BaselineScores(name, told, scores, place))
    return list(found.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def below_popularity(*results: dict[str, Any]) -> bool:
    """Whether the mean HR@10 of the results is less than that of ranking by popularity."""
    test, popularity = (sum(result[part]["HR@10"] for result in results) for part in ("test", "popularity"))
    return test < popularity


def result_row(*results: dict[str, Any]) -> list[str]:
    """The COLUMNS of a test result, or of one over several seeds: metrics with their spread, the most memory."""
    seconds, parameters, memory = costs(results).values()
    scores = metric_cells(*(result["test"] for result in results))
    return [*scores, f"{parameters:,}", f"{seconds:.2f}", f"{memory:,.0f}"]


def costs(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What a row's runs cost, by the names of result.json: mean seconds, the first's parameters, the most memory."""
    return {
        "seconds_per_epoch": statistics.mean(result["seconds_per_epoch"] for result in results),
        "trainable_parameters": results[0]["trainable_parameters"],
        "peak_memory_mib": max(result["peak_memory_mib"] for result in results),
    }


def metric_cells(*metrics: dict[str, float]) -> list[str]:
    """HR@10 and NDCG@10 as cells: the mean, and the sample standard deviation where there are several."""
    return [mean_and_spread([one[name] for one in metrics]) for name in METRICS]


def mean_and_spread(values: list[float]) -> str:
    """`0.0416`, or `0.0416 ± 0.0012` of several values: mean and sample standard deviation."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{shown_mean(statistics.mean(values))}{spread}"


def shown_mean(mean: float) -> str:
    """A metric's mean as tables show it."""
    return f"{mean:.4f}"


def markdown(header: list[str], rows: list[list[str]], emphasis: Emphasis | None = None) -> str:
    """A Markdown table with aligned columns: the first to the left, numbers to the right.

    Cells are plain text: what Markdown or HTML would make of them is escaped.

    Args:
        emphasis: BEST (bold) or SECOND (underlined) of the cells that stand out.
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
    """Plain text in Markdown: what Markdown or HTML would make of it is escaped."""
    special = {character: f"\\{character}" for character in "\\|`[]"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
    return "".join(special.get(character, character) for character in printable(text))


def latex(header: list[str], rows: list[list[str]], emphasis: Emphasis | None = None) -> str:
    """A tabular for LaTeX with the booktabs package; `emphasis` as `markdown` takes it."""
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
    """CSV with a header line; cells of columns that a row lacks are empty."""
    from pandas import DataFrame

    shown = [
        {printable(name): printable(cell) if isinstance(cell, str) else cell for name, cell in row.items()}
        for row in rows
    ]
    # Of objects, so that a whole number stays one where another row's cell is empty.
    return DataFrame(shown, dtype=object).to_csv(index=False, lineterminator="\n")
