"""Plots of a dataset: how long sequences are, how popular items are, and when interactions happened."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter

from transrec.data.dataset import Dataset
from transrec.data.moments import moment
from transrec.data.statistics import as_kept, as_read
from transrec.errors import printable
from transrec.paths import atomic_write
from transrec.reports.svg import as_svg

BARS = 80
# A curve of a million items looks no different with these many points.
POINTS = 1000
DAY = 24 * 60 * 60
THOUSANDS = StrMethodFormatter("{x:,.0f}")

Panel = Callable[[Dataset, Axes], None]


def sequences(dataset: Dataset, panel: Axes) -> None:
    """How long users' sequences are."""
    read, kept = as_read(dataset), as_kept(dataset.split)
    shortest, longest = int(read.lengths.min()), int(read.lengths.max())
    # Bars as wide as a whole number of lengths: else some hold more of them than others.
    width = 1 + (longest - shortest) // BARS
    bins = (np.arange(shortest, longest + width + 1, width) - 0.5).tolist()
    panel.hist(read.lengths, bins=bins, color="0.75", label="read")
    panel.hist(kept.lengths, bins=bins, histtype="step", color="C0", linewidth=1.5, label="kept")
    panel.set(xlabel="interactions of a user", ylabel="users", yscale="log")


def popularity(dataset: Dataset, panel: Axes) -> None:
    """How popular items are by rank."""
    read, kept = as_read(dataset), as_kept(dataset.split)
    for activity, colour, label, linewidth in ((read, "0.75", "read", 5), (kept, "C0", "kept", 1.5)):
        counts = activity.ranked[activity.ranked > 0]
        ranks = np.unique(np.geomspace(1, len(counts), POINTS).round().astype(int))
        panel.plot(ranks, counts[ranks - 1], color=colour, label=label, linewidth=linewidth)
    panel.set(xlabel="rank of an item", ylabel="interactions with it", xscale="log", yscale="log")
    panel.xaxis.set_major_formatter(THOUSANDS)


def time_line(dataset: Dataset, panel: Axes) -> None:
    """When interactions happened, and the test targets among them; the dataset's times must be known."""
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
    """What can be drawn of a dataset, by what it shows."""
    found: dict[str, Panel] = {"sequences": sequences, "popularity": popularity}
    return found | ({} if dataset.interactions.times is None else {"time line": time_line})


def _draw(dataset: Dataset, panel: Axes, draw: Panel) -> None:
    draw(dataset, panel)
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    panel.yaxis.set_major_formatter(THOUSANDS)


def write_png(dataset: Dataset, path: Path) -> None:
    """Write a PNG of the lengths of sequences and of popularity."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for panel, draw in zip(figure.subplots(1, 2), (sequences, popularity), strict=True):
        _draw(dataset, panel, draw)
        # A name may hold signs that would be read as a formula.
        panel.set_title(f"{printable(dataset.name)}: {draw.__name__}", parse_math=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def svg(dataset: Dataset, name: str) -> str:
    """One of `panels` as an `<svg>` to stand in an HTML page."""
    return as_svg(lambda panel: _draw(dataset, panel, panels(dataset)[name]), name)
