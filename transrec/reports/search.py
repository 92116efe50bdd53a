"""Tables and plots of a hyperparameter search (`scripts/search.py`)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from transrec.errors import printable
from transrec.paths import atomic_write
from transrec.reports.tables import METRICS, comma_separated, markdown, metric_cells

COLUMNS = ("trials", "complete", "pruned", "failed", "hours", "selected by", "validation", "best trial")
# Entries of a row that are not columns of numbers.
NOT_NUMBERS = ("settings", "space", "tested")


def search_tables(rows: list[dict[str, Any]], budget: str) -> dict[str, str]:
    """Return search.md and search.csv: each method's budget and selected settings, and its test metrics if known.

    Args:
        rows: for each method, COLUMNS by name, its "method", its "settings" and "space" by flag, the reason of its last
            "failure", the number of "unfinished" trials, and the results over seeds under "tested".
        budget: the budget of each method, in words.
    """
    tests = ["seeds", *METRICS] if any(row.get("tested") for row in rows) else []
    header = ["method", *COLUMNS, *(f"test {name}" if name in METRICS else name for name in tests), "settings"]
    lines = [
        [
            row["method"],
            *(_cell(row[name]) for name in COLUMNS),
            *_tested(row, bool(tests)),
            _settings_text(row["settings"]),
        ]
        for row in rows
    ]
    text = f"{markdown(header, lines)}\n\nBudget of each method: {budget}. Trials are chosen by validation alone.\n"
    text += "".join(f"\nSpace of {row['method']}: {_settings_text(row['space'])}.\n" for row in rows)
    for row in rows:
        if row["unfinished"]:
            text += f"\n{row['method']}: {row['unfinished']} trials have not finished and do not count as complete.\n"
        if row["failure"]:
            which = "every trial" if row["failed"] == row["trials"] else f"{row['failed']} of {row['trials']} trials"
            text += f"\n{row['method']}: {which} failed, the last one with: {printable(row['failure'])}\n"
    return {"search.md": text, "search.csv": comma_separated([_numbers(row) for row in rows])}


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "-" if value is None else str(value)


def _tested(row: dict[str, Any], shown: bool) -> list[str]:
    if not shown:
        return []
    results = row.get("tested")
    return [str(len(results)), *metric_cells(*(result["test"] for result in results))] if results else ["-"] * 3


def _settings_text(values: dict[str, Any]) -> str:
    texts = {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in values.items()}
    return ", ".join(f"{name} {text}" for name, text in texts.items()) or "-"


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    results = row.get("tested") or []
    numbers = {name: "" if value is None else value for name, value in row.items() if name not in NOT_NUMBERS}
    numbers |= {name: json.dumps(row[name]) for name in ("settings", "space")}
    for name in dict.fromkeys(name for result in results for name in result["test"]):
        values = [result["test"][name] for result in results]
        numbers[f"test {name}"] = float(np.mean(values))
        numbers[f"test {name} deviation"] = float(np.std(values, ddof=1)) if len(values) > 1 else ""
    return numbers | ({"seeds": len(results)} if results else {})


def draw_history(path: Path, histories: dict[str, list[tuple[int, float]]]) -> None:
    """Write a PNG of each completed trial's validation metric and the best one so far, by method.

    Args:
        histories: number and metric of each completed trial, by method.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, history) in enumerate(histories.items()):
        trials, values = [trial for trial, _ in history], [value for _, value in history]
        colour = f"C{number % 10}"
        axes.plot(trials, values, "o", color=colour, markersize=3, alpha=0.5)
        axes.step(
            trials, np.maximum.accumulate(values) if values else [], where="post", color=colour, label=printable(name)
        )
    axes.set(xlabel="trial", ylabel="validation metric, and the best so far")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, path)


def draw_importances(path: Path, importances: dict[str, dict[str, float]]) -> None:
    """Write a PNG of the share of the validation metric's spread that each flag explains, by method.

    Args:
        importances: the share of each flag, by method; empty if there are too few trials to estimate it.
    """
    figure = Figure(figsize=(6.4, 0.8 + 1.3 * len(importances)), layout="constrained")
    for axes, (name, shares) in zip(
        figure.subplots(len(importances), squeeze=False).flat, importances.items(), strict=True
    ):
        axes.barh([*reversed(shares)], [*reversed(shares.values())])
        axes.set(xlim=(0, 1), title=printable(name) if shares else f"{printable(name)}: too few trials")
        axes.title.set_fontsize(9)
    figure.supxlabel("importance: share of the spread between trials", fontsize=9)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
