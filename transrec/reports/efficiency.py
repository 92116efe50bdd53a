"""The training cost of each method: the paper's efficiency table, and a plot of accuracy against TPME."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from transrec.paths import atomic_write
from transrec.reports.tables import COLUMNS, markdown, result_row
from transrec.reports.tpme import tpme

# The keys of a result that TPME combines.
TPME_KEYS = ("seconds_per_epoch", "trainable_parameters", "peak_memory_mib")
PHASES = ("feed", "forward", "backward", "step")


def tpme_by_method(results: dict[str, dict[str, Any]], weights: tuple[float, float, float]) -> dict[str, float]:
    """Return the TPME of each method's result, by method."""
    columns = [[result[name] for result in results.values()] for name in TPME_KEYS]
    return dict(zip(results, tpme(*columns, weights=weights), strict=True))


def table(results: dict[str, dict[str, Any]], weights: tuple[float, float, float]) -> str:
    """Return a Markdown table of each method's metrics and costs, seconds per epoch by phase, and TPME."""
    tpme_of = tpme_by_method(results, weights)
    header = ["script", "method", *COLUMNS, "host memory, MiB", *(f"{phase}, s" for phase in PHASES), "TPME"]
    rows = [
        [
            name,
            result.get("name", "-"),
            *result_row(result),
            f"{result['peak_host_memory_mib']:,.0f}",
            *(f"{result['phase_seconds'].get(phase, 0.0):.2f}" for phase in PHASES),
            f"{tpme_of[name]:.3f}",
        ]
        for name, result in results.items()
    ]
    return markdown(header, rows)


def plot(results: dict[str, dict[str, Any]], weights: tuple[float, float, float], path: Path) -> None:
    """Write a PNG of HR@10 against TPME, with a bubble per method whose area grows with its trainable parameters."""
    tpme_of = tpme_by_method(results, weights)
    most = max(result["trainable_parameters"] for result in results.values())
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, result in results.items():
        size = 40 + 1500 * result["trainable_parameters"] / most
        axes.scatter(tpme_of[name], result["test"]["HR@10"], s=size, alpha=0.5)
        axes.annotate(name, (tpme_of[name], result["test"]["HR@10"]), ha="center", va="center", fontsize=8)
    axes.set_xlabel("TPME (lower is cheaper)")
    axes.set_ylabel("HR@10, test")
    axes.margins(0.2)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
