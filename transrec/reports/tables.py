"""Results of runs as rows, and rows as Markdown."""

import json
from pathlib import Path
from typing import Any

from transrec.errors import TransrecError

COLUMNS = ("HR@10", "NDCG@10", "trainable parameters", "seconds an epoch", "peak memory, MiB")


def read_result(folder: Path) -> dict[str, Any]:
    """result.json of a run. Raises TransrecError when the run has not finished."""
    path = folder / "result.json"
    if not path.exists():
        raise TransrecError(
            f"{folder}: has no result.json, the run has not finished; continue it with --resume {folder}"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def result_row(result: dict[str, Any]) -> list[str]:
    """The COLUMNS of one run's test result."""
    return [
        *metric_cells(result["test"]),
        f"{result['trainable_parameters']:,}",
        f"{result['seconds_per_epoch']:.2f}",
        f"{result['peak_memory_mib']:,.0f}",
    ]


def metric_cells(metrics: dict[str, float]) -> list[str]:
    """HR@10 and NDCG@10 as cells."""
    return [f"{metrics[name]:.4f}" for name in COLUMNS[:2]]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with aligned columns: the first to the left, numbers to the right."""
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
