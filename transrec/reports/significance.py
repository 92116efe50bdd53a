"""Tests whether two methods differ by more than chance: paired tests over users, intervals over users and seeds.

A method's values of one metric are a matrix [S, U]: a row for each seed, and a column for each user (or each target, if
a split has several targets per user). All compared methods have the same users in the same order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from scipy.signal import fftconvolve

from transrec.errors import TransrecError

RESAMPLES = 2000
CONFIDENCE = 0.95
# Maximum number of resampled values in memory at the same time.
VALUES_AT_ONCE = 2**24


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Spread:
    """The variation of one method's metric.

    Attributes:
        users: interval of the mean under resampling of users, with fixed seeds.
        seeds: sample standard deviation of the mean over seeds; None for one seed.
        both: interval under resampling of users and seeds together; None for one seed.
    """

    users: Interval
    seeds: float | None
    both: Interval | None


@dataclass(frozen=True)
class Comparison:
    """A method compared with another.

    Attributes:
        difference: interval of the mean difference over users, the first method minus the second.
        p_values: two-sided p-values by test. "McNemar" is exact and needs values of 0 and 1; over several seeds it is
            the exact sign-flip test of the mean difference, which for one seed equals McNemar's test. "Wilcoxon"
            (signed ranks, zeros by Pratt's method) and "paired t" test each user's mean over seeds, for any values.
    """

    difference: Interval
    p_values: dict[str, float]


def spread(values: np.ndarray, seed: int = 0) -> Spread:
    """Return how a method's values [S, U] of a metric vary over users and over seeds."""
    _check(values)
    of_users = _interval(values.mean(0), seed)
    if len(values) == 1:
        return Spread(of_users, None, None)
    return Spread(of_users, float(values.mean(1).std(ddof=1)), _interval_of_both(values, seed))


def compare(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Comparison:
    """Compare two methods' values [S, U] and [S', U] of one metric over the same users.

    Raises TransrecError as `paired_tests` does.
    """
    p_values = paired_tests(first, second)
    return Comparison(_interval(first.mean(0) - second.mean(0), seed), p_values)


# Relative error of a mean over seeds, generously.
ROUNDING = 64 * np.finfo(np.float64).eps


def paired_tests(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Return the p-values of `Comparison`.

    Raises TransrecError for different numbers of users, for no users, and for values that are not finite.
    """
    for values in (first, second):
        _check(values)
    if first.shape[1] != second.shape[1]:
        raise TransrecError(
            f"cannot compare {first.shape[1]:,} users with {second.shape[1]:,}: paired tests need runs on the same data"
        )
    means = first.mean(0), second.mean(0)
    differences = means[0] - means[1]
    # The mean of equal numbers differs from them by rounding, which tests that count signs would take for a difference.
    differences[np.abs(differences) <= ROUNDING * np.abs(means).max(0)] = 0
    p_values = {}
    if np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all():
        p_values["McNemar"] = _sign_flip_test(differences, np.lcm(len(first), len(second)))
    p_values["Wilcoxon"] = _p_value(stats.wilcoxon, differences, zero_method="pratt", correction=False, method="approx")
    p_values["paired t"] = _p_value(stats.ttest_1samp, differences, popmean=0.0)
    return p_values


def _sign_flip_test(differences: np.ndarray, parts: int) -> float:
    """Return how likely a mean at least as far from 0 is if each of the differences [U] had either sign by chance.

    Counting signs alone would not do: a method whose seeds disagree hits more users at least once, and would seem to
    differ from one of the same mean.

    Args:
        parts: a number that makes every difference whole, such as the least common multiple of the numbers of seeds.
    """
    whole = np.rint(differences * parts).astype(np.int64)
    total, chances = int(np.abs(whole).sum()), np.ones(1)
    # chances[s]: the probability that the positive differences add up to s.
    for size, count in zip(*np.unique(np.abs(whole[whole != 0]), return_counts=True), strict=True):
        of_size = np.zeros(size * count + 1)
        of_size[::size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        chances = fftconvolve(chances, of_size) if len(chances) > 1 else of_size
    least = (total + abs(int(whole.sum())) + 1) // 2
    return float(np.clip(2 * chances[least:].sum(), 0, 1))


def _p_value(test: Callable[..., Any], differences: np.ndarray, **options: Any) -> float:
    """Return a test's p-value; 1 if no user differs or there is only one user."""
    return float(test(differences, **options).pvalue) if differences.any() and len(differences) > 1 else 1.0


def _interval(values: np.ndarray, seed: int) -> Interval:
    """Return the percentile bootstrap interval of the mean of values [U]."""
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, mean, mean)
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, VALUES_AT_ONCE // len(values)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(interval.low), float(interval.high))


def _interval_of_both(values: np.ndarray, seed: int) -> Interval:
    """Return the percentile bootstrap interval of the mean of [S, U].

    Each resample draws seeds, and then the same users for all drawn seeds.
    """
    random = np.random.default_rng(seed)
    seeds, users = values.shape
    means = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        drawn = values[random.integers(seeds, size=seeds)].mean(0)
        means[number] = drawn[random.integers(users, size=users)].mean()
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down method, which bounds the probability of any false rejection."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted.tolist()


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by the Benjamini-Hochberg method, which bounds the expected share of false rejections."""
    return stats.false_discovery_control(p_values).tolist() if len(p_values) else []


CORRECTIONS = {"holm": holm, "bh": benjamini_hochberg}


def p_values_against(
    best: str, values: Mapping[str, np.ndarray], test: str, correction: str = "holm"
) -> dict[str, float]:
    """Return the adjusted p-value of each other method's difference from `best`.

    Args:
        values: values [S, U] of one metric, by method.
        test: the name of a test in `Comparison.p_values`.
        correction: "holm" or "bh".
    """
    others = [name for name in values if name != best]
    p_values = [paired_tests(values[name], values[best])[test] for name in others]
    return dict(zip(others, CORRECTIONS[correction](p_values), strict=True))


def _check(values: np.ndarray) -> None:
    if values.ndim != 2 or not values.size:
        raise TransrecError(
            f"values of shape {list(values.shape)}: a test needs one row per seed and one column per user"
        )
    if not np.isfinite(values).all():
        raise TransrecError("a test needs finite values of every user")
