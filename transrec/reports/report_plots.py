"""Plots of finished runs: learning curves, accuracy against cost, and accuracy per slice of the targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from transrec.reports.svg import as_svg

COLOURS = (
    *("#1f77b4", "#d95f02", "#2ca02c", "#d62728", "#9467bd"),
    *("#8c564b", "#e377c2", "#6f6f6f", "#a8a818", "#17becf"),
)
STYLES = ("-", "--", ":", "-.")
# Number of marks in a plot of curves; more of them would only make the page larger.
MARKS = 1500
LARGEST_BUBBLE = 700


@dataclass(frozen=True)
class Curve:
    """A value over the epochs of a run.

    Attributes:
        number: the number of the run's row, from 1.
        run: the name of the run.
    """

    number: int
    run: str
    epochs: list[int]
    values: list[float]


def colour(number: int) -> str:
    """Return a row's colour, the same in all plots."""
    return COLOURS[(number - 1) % len(COLOURS)]


def curves(lines: Sequence[Curve], what: str, lower_is_better: bool, name: str) -> str:
    """Plot `what` over the epochs of each run, as an `<svg>`."""

    def draw(panel: Axes) -> dict[str, str]:
        words = {}
        for place, curve in enumerate(lines):
            best = int((np.argmin if lower_is_better else np.argmax)(curve.values))
            style = STYLES[(curve.number - 1) // len(COLOURS) % len(STYLES)]
            line = f"line-{place}"
            panel.plot(curve.epochs, curve.values, style, color=colour(curve.number), linewidth=1.3, gid=line)
            words[line] = f"{curve.run}: best {what} {curve.values[best]:.4g} at epoch {curve.epochs[best]}"
            shown = np.linspace(0, len(curve.epochs) - 1, min(len(curve.epochs), max(2, MARKS // len(lines))))
            for point in np.unique(shown.astype(int)):
                epoch, value = curve.epochs[point], curve.values[point]
                mark = f"mark-{place}-{point}"
                panel.plot([epoch], [value], "o", color=colour(curve.number), markersize=3, gid=mark)
                words[mark] = f"{curve.run}, epoch {epoch}: {what} {value:.4g}"
        panel.set(xlabel="epoch", ylabel=what)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        return words

    return as_svg(draw, name, f"{what} by epoch, a line for each run")


@dataclass(frozen=True)
class Bubble:
    """A row in a plot of accuracy against cost.

    Attributes:
        number: the number of the row, from 1.
        score: the row's metric.
        costs: the row's costs, by name.
        size: the quantity that sets the bubble's area.
        words: the text shown for the bubble.
    """

    number: int
    score: float
    costs: Mapping[str, float]
    size: float
    words: str


def bubbles(rows: Sequence[Bubble], cost: str, metric: str, name: str) -> str:
    """Plot a metric against a cost, as an `<svg>`."""
    largest = max(chain((bubble.size for bubble in rows), [1]))

    def draw(panel: Axes) -> dict[str, str]:
        words = {}
        for bubble in sorted(rows, key=lambda bubble: -bubble.size):
            at, gid = (bubble.costs[cost], bubble.score), f"line-{bubble.number}"
            area = 80 + LARGEST_BUBBLE * bubble.size / largest
            panel.scatter(*map(_one, at), s=[area], color=colour(bubble.number), alpha=0.55, gid=gid)
            panel.annotate(str(bubble.number), at, ha="center", va="center", fontsize=8)
            words[gid] = bubble.words
        panel.set(xlabel=cost, ylabel=metric)
        panel.margins(0.2)
        panel.grid(alpha=0.3)
        return words

    return as_svg(draw, name, f"{metric} against {cost}, a bubble for each row, larger where more parameters train")


def _one(value: float) -> list[float]:
    return [value]


def slices(rows: Sequence[Mapping[str, Any]], numbers: Mapping[str, int], metric: str, name: str) -> str:
    """Plot a metric of each method in each slice, as an `<svg>`.

    Args:
        rows: the result of `Comparison.rows`.
        numbers: the numbers of the report's rows, by the method's name.
    """
    names = list(dict.fromkeys(row["slice"] for row in rows))

    def draw(panel: Axes) -> dict[str, str]:
        words = {}
        for place, row in enumerate(rows):
            number, gid = numbers[row["method"]], f"mark-{place}"
            offset = 0.6 * ([*numbers.values()].index(number) + 0.5) / len(numbers) - 0.3
            panel.plot([row[metric]], [names.index(row["slice"]) + offset], "o", color=colour(number), gid=gid)
            words[gid] = f"{number} {row['method']}, {row['slice']}: {metric} {row[metric]:.4f}"
        panel.set_yticks(range(len(names)), names, fontsize=8)
        panel.invert_yaxis()
        panel.set(xlabel=metric)
        panel.grid(alpha=0.3)
        return words

    return as_svg(draw, name, f"{metric} of each method in each slice")
