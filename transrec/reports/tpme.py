"""TPME, IISAN's composite of training time, trainable parameters and memory."""

from collections.abc import Sequence
from typing import Any

from transrec.errors import TransrecError
from transrec.reports.tables import ExtraColumn, costs

WEIGHTS = (0.45, 0.10, 0.45)


def tpme(
    seconds: Sequence[float],
    parameters: Sequence[float],
    memory: Sequence[float],
    weights: tuple[float, float, float] = WEIGHTS,
) -> list[float]:
    """Return the TPME of each of K methods: the weighted sum of three costs, each min-max normalised over the methods.

    Lower is better. A cost that is equal for all methods counts as 0.

    Args:
        seconds: training seconds per epoch.
        parameters: numbers of trainable parameters.
        memory: peak memory of the device that computes.
        weights: weights of the three costs, not negative, with sum 1.

    Raises TransrecError for other weights.
    """
    if min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
        raise TransrecError(f"TPME's weights are shares: {weights} must not be negative and must sum to 1")
    columns = [_normalised(values) for values in (seconds, parameters, memory)]
    return [sum(w * value for w, value in zip(weights, row, strict=True)) for row in zip(*columns, strict=True)]


def tpme_column(rows: Sequence[Sequence[dict[str, Any]]]) -> ExtraColumn:
    """Return the TPME column of a table, given the results of each row's runs; a single row has no TPME."""
    measured = {number: results for number, results in enumerate(rows) if results}
    values = {}
    if len(measured) > 1:
        seconds, parameters, memory = zip(*(costs(row).values() for row in measured.values()), strict=True)
        values = dict(zip(measured, tpme(seconds, parameters, memory), strict=True))
    numbers = range(len(rows))
    return ExtraColumn(
        "TPME",
        [f"{values[number]:.3f}" if number in values else "-" for number in numbers],
        [{"TPME": values[number]} if number in values else {} for number in numbers],
    )


def _normalised(values: Sequence[float]) -> list[float]:
    low, high = min(values, default=0), max(values, default=0)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]
