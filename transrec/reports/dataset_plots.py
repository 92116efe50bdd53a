"""Plots of a dataset: lengths of sequences, popularity of items, and interactions over time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter

from transrec.data.dataset import Dataset
from transrec.data.moments import moment
from transrec.data.statistics import activity_as_kept, activity_as_read
from transrec.errors import printable
from transrec.paths import atomic_write
from transrec.reports.svg import as_svg

BARS = 80
# With this many points, even a curve of a million items looks the same as with all its points.
POINTS = 1000
DAY = 24 * 60 * 60
THOUSANDS = StrMethodFormatter("{x:,.0f}")

Panel = Callable[[Dataset, Axes], None]


def sequences(dataset: Dataset, panel: Axes) -> None:
    """Draw a histogram of the lengths of users' sequences."""
    read, kept = activity_as_read(dataset), activity_as_kept(dataset.split)
    shortest, longest = int(read.lengths.min()), int(read.lengths.max())
    # The width of a bar is a whole number of lengths; otherwise some bars would cover more lengths than others.
    width = 1 + (longest - shortest) // BARS
    bins = (np.arange(shortest, longest + width + 1, width) - 0.5).tolist()
    panel.hist(read.lengths, bins=bins, color="0.75", label="read")
    panel.hist(kept.lengths, bins=bins, histtype="step", color="C0", linewidth=1.5, label="kept")
    panel.set(xlabel="interactions of a user", ylabel="users", yscale="log")


def popularity(dataset: Dataset, panel: Axes) -> None:
    """Draw the number of interactions per item, by the item's popularity rank."""
    read, kept = activity_as_read(dataset), activity_as_kept(dataset.split)
    for activity, colour, label, linewidth in ((read, "0.75", "read", 5), (kept, "C0", "kept", 1.5)):
        counts = activity.ranked[activity.ranked > 0]
        ranks = np.unique(np.geomspace(1, len(counts), POINTS).round().astype(int))
        panel.plot(ranks, counts[ranks - 1], color=colour, label=label, linewidth=linewidth)
    panel.set(xlabel="rank of an item", ylabel="interactions with it", xscale="log", yscale="log")
    panel.xaxis.set_major_formatter(THOUSANDS)


def time_line(dataset: Dataset, panel: Axes) -> None:
    """Draw a histogram of the times of interactions and of test targets; the dataset's times must be known."""
    split, times = dataset.split, dataset.interactions.times
    assert times is not None
    bins = np.histogram_bin_edges(times.astype(np.float64), BARS).tolist()
    panel.hist(times.astype(np.float64), bins=bins, color="0.75", label="read")
    if split.times is not None:
        targets = split.times[split.targets("test")[1]].astype(np.float64)
        panel.hist(targets, bins=bins, histtype="step", color="C0", linewidth=1.5, label="test targets")
    letters = len("2018-09-01") if bins[-1] - bins[0] > 10 * DAY else None
    panel.xaxis.set_major_locator(MaxNLocator(4))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: moment(int(seconds))[:letters]))
    panel.set(xlabel="time (UTC)", ylabel="interactions")


def panels(dataset: Dataset) -> dict[str, Panel]:
    """Return the panels that can be drawn for a dataset, by name."""
    always: dict[str, Panel] = {"sequences": sequences, "popularity": popularity}
    return always | ({} if dataset.interactions.times is None else {"time line": time_line})


def _draw(dataset: Dataset, panel: Axes, draw: Panel) -> None:
    draw(dataset, panel)
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    panel.yaxis.set_major_formatter(THOUSANDS)


def write_png(dataset: Dataset, path: Path) -> None:
    """Write a PNG with the panels of sequence lengths and popularity."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for panel, draw in zip(figure.subplots(1, 2), (sequences, popularity), strict=True):
        _draw(dataset, panel, draw)
        # A name may contain characters that matplotlib would read as a formula.
        panel.set_title(f"{printable(dataset.name)}: {draw.__name__}", parse_math=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def svg(dataset: Dataset, name: str) -> str:
    """Return one of `panels` as an `<svg>` for an HTML page."""
    return as_svg(lambda panel: _draw(dataset, panel, panels(dataset)[name]), name)
