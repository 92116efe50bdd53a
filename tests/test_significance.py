"""Tests between methods: equal to scipy's on the same values, correct error rates, and corrected over a table."""

import numpy as np
import pytest
from scipy import stats

from transrec.errors import TransrecError
from transrec.reports.significance import benjamini_hochberg, compare, holm, p_values_against, paired_tests, spread

RANDOM = np.random.default_rng(7)


def hits(rate: float, seeds: int = 1, users: int = 400) -> np.ndarray:
    return (RANDOM.random((seeds, users)) < rate).astype(float)


def test_one_seed_of_hits_gives_the_exact_mcnemar_test():
    first, second = hits(0.3), hits(0.4)
    better, worse = int((first > second).sum()), int((first < second).sum())
    expected = stats.binomtest(better, better + worse).pvalue
    assert compare(first, second).p_values["McNemar"] == pytest.approx(expected, rel=1e-9)


def test_several_seeds_of_hits_give_scipys_exact_permutation_test():
    for seeds, others in ((2, 3), (3, 3), (1, 3), (4, 2)):
        first, second = hits(0.6, seeds, users=12), hits(0.3, others, users=12)
        expected = stats.permutation_test(
            (first.mean(0), second.mean(0)),
            lambda one, two, axis: (one - two).mean(axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=np.inf,
        )
        assert compare(first, second).p_values["McNemar"] == pytest.approx(expected.pvalue, rel=1e-9)


def test_seeds_that_disagree_do_not_make_methods_of_the_same_mean_differ():
    rejected = 0
    for _ in range(100):
        certain = hits(0.06, users=5_000)
        rates = np.where(certain > 0, 0.6, 0.06 * 0.4 / 0.94)
        rejected += paired_tests(certain, (RANDOM.random((3, 5_000)) < rates) * 1.0)["McNemar"] < 0.05
    # 5 % of 100 are 5, and more than 13 come once in a thousand times.
    assert rejected <= 13


def test_any_values_give_scipys_paired_tests_on_the_mean_over_seeds():
    first, second = RANDOM.random((3, 200)), RANDOM.random((2, 200)) + 0.05
    found = compare(first, second)
    a, b = first.mean(0), second.mean(0)
    assert found.p_values["paired t"] == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)
    wilcoxon = stats.wilcoxon(a, b, zero_method="pratt", method="approx").pvalue
    assert found.p_values["Wilcoxon"] == pytest.approx(wilcoxon, rel=1e-9)
    assert "McNemar" not in found.p_values
    assert found.difference.mean == pytest.approx(a.mean() - b.mean())
    assert found.difference.low < found.difference.mean < found.difference.high


@pytest.mark.parametrize("seeds", [(1, 3), (5, 1), (5, 3), (7, 5)])
def test_methods_that_differ_by_rounding_alone_do_not_differ(seeds):
    """The mean of equal numbers is not always that number."""
    ranks = RANDOM.integers(1, 3000, 2000)
    for values in (1 / ranks, (ranks <= 10) / np.log2(ranks + 1)):
        assert {*compare(*(np.tile(values, (count, 1)) for count in seeds)).p_values.values()} == {1.0}


def test_a_method_beside_itself_differs_by_nothing():
    values = hits(0.2, seeds=2)
    found = compare(values, values)
    assert set(found.p_values.values()) == {1.0}
    assert (found.difference.low, found.difference.high) == (0, 0)


def test_methods_that_do_not_differ_are_told_apart_as_rarely_as_chance_says():
    # 5 % of 300 are 15; more than 27 have a probability of one in a thousand.
    p_values = [compare(hits(0.2, users=150), hits(0.2, users=150)).p_values for _ in range(300)]
    for test in ("McNemar", "Wilcoxon", "paired t"):
        assert sum(by_test[test] < 0.05 for by_test in p_values) <= 27, test


def test_the_interval_over_users_holds_the_true_mean_as_often_as_it_says():
    # 95 % of 300 samples are 285; 268 or fewer have a probability below one in a thousand if the interval is right.
    covered = 0
    for number in range(300):
        found = spread(RANDOM.exponential(size=(1, 200)), seed=number).users
        covered += found.low <= 1 <= found.high
    assert 268 <= covered <= 298


def test_the_spread_over_seeds_is_named_apart_from_that_over_users():
    values = np.stack([np.full(100, 0.1), np.full(100, 0.2), np.full(100, 0.3)])
    found = spread(values)
    assert (found.users.low, found.users.high) == pytest.approx((0.2, 0.2))
    assert found.seeds == pytest.approx(0.1)
    assert found.both is not None and found.both.low < 0.15 and found.both.high > 0.25
    assert spread(values[:1]).seeds is None


def test_corrections_over_a_table():
    p_values = [0.01, 0.04, 0.03, 0.005]
    assert holm(p_values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert benjamini_hochberg(p_values) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert holm([]) == benjamini_hochberg([]) == []


def test_a_table_tells_what_differs_from_its_best():
    values = {"strong": hits(0.5), "alike": hits(0.49), "weak": hits(0.1)}
    adjusted = p_values_against("strong", values, "McNemar")
    assert list(adjusted) == ["alike", "weak"]
    assert adjusted["weak"] < 1e-6 < 0.05 < adjusted["alike"]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.zeros((1, 5)), np.zeros((1, 6)), "5 users with 6"),
        (np.zeros(5), np.zeros((1, 5)), "one row per seed"),
        (np.zeros((1, 0)), np.zeros((1, 0)), "one row per seed"),
        (np.full((1, 5), np.nan), np.zeros((1, 5)), "finite"),
    ],
)
def test_what_cannot_be_compared(first, second, message):
    with pytest.raises(TransrecError, match=message):
        compare(first, second)
