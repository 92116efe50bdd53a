"""Marks for the rows of tables: the best, the second, and significant differences from the best, by kept ranks."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from transrec.reports.marks import Row, mark, note
from transrec.reports.significance import holm, paired_tests
from transrec.reports.tables import BEST, METRICS, SECOND, latex, markdown
from transrec.training.ranks import RANK, ranks_file, write_ranks

TARGETS = 300


def ranks_around(middle: float, seed: int) -> np.ndarray:
    """Return artificial ranks float [TARGETS]: the smaller the middle, the better."""
    return np.ceil(np.random.default_rng(seed).exponential(middle, TARGETS)).clip(1)


def values_of(metric: str, ranks: np.ndarray) -> np.ndarray:
    return (ranks <= 10) * (1.0 if metric == "HR@10" else 1 / np.log2(ranks + 1))


def row_of(root: Path, name: str, runs: dict[int, np.ndarray], stored: bool = True, first_user: int = 0) -> Row:
    """Return a row of runs with these ranks by seed."""
    by_seed = {}
    for seed, ranks in runs.items():
        folder = root / f"{name}-{seed}"
        folder.mkdir()
        if stored:
            kept_ranks = np.zeros(len(ranks), RANK)
            kept_ranks["user"] = np.arange(len(ranks)) + first_user
            kept_ranks["rank"] = ranks
            write_ranks(folder, "test", kept_ranks)
        by_seed[seed] = folder, {"test": {metric: float(values_of(metric, ranks).mean()) for metric in METRICS}}
    return Row(name, by_seed)


def baseline_of(root: Path, name: str, ranks: np.ndarray, stored: bool = True) -> Row:
    """Return the row of a baseline with these ranks, ranked in a run with its own folder."""
    row = row_of(root, name, {0: ranks}, stored)
    (folder, result) = row.runs[0]
    if stored:
        ranks_file(folder, "test").rename(ranks_file(folder, "test", name))
    return Row(f"the {name}", {0: (folder, result)}, name)


def note_below(rows: list[Row]) -> str:
    return note(rows, {metric: mark(rows, metric) for metric in METRICS})


def test_best_second_and_p_values_are_those_of_scipy(tmp_path):
    middles = {"weak": 40, "strong": 8, "near": 8.5, "middling": 14}
    ranks = {name: ranks_around(middle, number) for number, (name, middle) in enumerate(middles.items())}
    rows = [row_of(tmp_path, name, {0: values}) for name, values in ranks.items()]
    for metric in METRICS:
        values = {name: values_of(metric, of) for name, of in ranks.items()}
        order = sorted(values, key=lambda name: -values[name].mean())
        expected = []
        for name in order[1:]:
            differences = values[name] - values[order[0]]
            if metric == "HR@10":
                better, worse = int((differences > 0).sum()), int((differences < 0).sum())
                expected.append(stats.binomtest(better, better + worse).pvalue)
            else:
                expected.append(stats.ttest_rel(values[name], values[order[0]]).pvalue)
        adjusted = dict(zip(order[1:], holm(expected), strict=True))
        column = mark(rows, metric)
        assert column.places == [{order[0]: BEST, order[1]: SECOND}.get(name, "") for name in middles]
        for number, name in enumerate(middles):
            assert column.p_values[number] == (None if name == order[0] else pytest.approx(adjusted[name], rel=1e-9))
            differs = adjusted.get(name, 1) < 0.05
            assert column.cell(number, "0.1") == ("0.1†" if differs else "0.1")
        assert adjusted["weak"] < 0.05 and not column.untested
    text = note_below(rows)
    assert "Seeds per row: 1." in text and "McNemar" in text and "paired t-test" in text and "No test" not in text
    assert "0.05 level" in text and "Holm" in text and text.count("3 comparisons") == 2


def test_several_seeds_are_paired_by_seed(tmp_path):
    """If one row has one seed and the other three, the runs of the shared seed are compared; means use all runs."""
    strong = {seed: ranks_around(8, seed) for seed in range(3)}
    single = {2: ranks_around(12, 7)}
    rows = [row_of(tmp_path, "strong", strong), row_of(tmp_path, "single", single)]
    column = mark(rows, "NDCG@10")
    expected = stats.ttest_rel(*(values_of("NDCG@10", of[2]) for of in (single, strong))).pvalue
    assert column.p_values == [None, pytest.approx(expected, rel=1e-9)]
    assert "Seeds per row: 1 to 3." in note_below(rows)

    rows = [rows[0], row_of(tmp_path, "all", (whole := {seed: ranks_around(12, seed + 20) for seed in range(3)}))]
    hits = [np.stack([values_of("HR@10", of) for of in runs.values()]) for runs in (strong, whole)]
    assert mark(rows, "HR@10").p_values[1] == pytest.approx(paired_tests(*hits)["McNemar"], rel=1e-9)

    rows = [rows[0], row_of(tmp_path, "another", {5: ranks_around(12, 9)})]
    assert mark(rows, "HR@10").p_values == [None, None]
    assert "No test of HR@10: no seed in common with the best row (another)." in note_below(rows)


def test_baselines_are_tested_by_themselves_and_not_marked(tmp_path):
    strong = {seed: ranks_around(8, seed) for seed in range(3)}
    ranks = {"near": ranks_around(8.5, 7), "better": ranks_around(2, 8)}
    rows = [row_of(tmp_path, "strong", strong), row_of(tmp_path, "weak", {0: ranks_around(14, 9)})]
    beside = [baseline_of(tmp_path, name, of) for name, of in ranks.items()]
    mean = np.mean([values_of("NDCG@10", of) for of in strong.values()], axis=0)
    expected = holm([stats.ttest_rel(values_of("NDCG@10", of), mean).pvalue for of in ranks.values()])
    column, alone = mark([*rows, *beside], "NDCG@10"), mark(rows, "NDCG@10")
    assert column.places == [BEST, SECOND, "", ""] and column.p_values[:2] == alone.p_values
    assert column.p_values[2:] == pytest.approx(expected, rel=1e-9)
    assert [column.cell(number, "0.1") for number in (2, 3)] == ["0.1", "0.1†"]
    assert "1 comparison and 2 comparisons with baselines" in note_below([*rows, *beside])

    single = mark([rows[0], *beside], "NDCG@10")
    assert single.places == ["", "", ""] and single.p_values[1:] == column.p_values[2:]
    text = note_below([rows[0], *beside])
    assert "Seeds per row: 3." in text and "bold" not in text and "2 comparisons with baselines" in text
    unkept = baseline_of(tmp_path, "unkept", ranks_around(9, 1), stored=False)
    assert "No test of HR@10: no ranks that can be read are kept (the unkept)." in note_below([*rows, unkept])


def test_rows_that_read_the_same_are_marked_alike(tmp_path):
    ranks = ranks_around(8, 0)
    rows = [row_of(tmp_path, name, {0: of}) for name, of in (("a", ranks), ("b", ranks), ("c", ranks + 5))]
    column = mark(rows, "HR@10")
    assert column.places == [BEST, BEST, SECOND]
    assert column.p_values[:2] == [None, 1.0]
    assert mark(rows[:2], "HR@10").places == [BEST, BEST]


def test_a_row_alone_is_not_marked(tmp_path):
    rows = [row_of(tmp_path, "a", {0: ranks_around(8, 0), 1: ranks_around(8, 1)}), Row("to come", {})]
    column = mark(rows, "HR@10")
    assert (column.places, column.p_values) == (["", ""], [None, None])
    assert note_below(rows) == "Seeds per row: 2. No test: there is no other row to compare with."
    assert note_below(rows[1:]) == "No run has finished."


def test_rows_that_cannot_be_tested_are_told(tmp_path):
    best = row_of(tmp_path, "best", {0: ranks_around(8, 0)})
    weak = row_of(tmp_path, "weak", {0: ranks_around(40, 1)})
    older = row_of(tmp_path, "older", {0: ranks_around(20, 2)}, stored=False)
    others = row_of(tmp_path, "others", {0: ranks_around(20, 3)}, first_user=1)
    spoilt = row_of(tmp_path, "spoilt", {0: ranks_around(20, 4)})
    ranks_file(spoilt.runs[0][0], "test").write_bytes(b"\x93NUMPY and no more")
    rows = [best, weak, older, others, spoilt]
    column = mark(rows, "HR@10")
    assert [p is None for p in column.p_values] == [True, False, True, True, True]
    alone = mark([best, weak], "HR@10")
    assert column.p_values[1] == alone.p_values[1], "corrected over the tests that were made"
    text = note_below(rows)
    assert "HR@10: no ranks that can be read are kept (older, spoilt)." in text
    assert "NDCG@10: its targets are not those of the best row (others)." in text

    rows = [row_of(tmp_path, "unkept", {0: ranks_around(2, 5)}, stored=False), weak]
    assert mark(rows, "HR@10").places == [BEST, SECOND]
    assert "No test of HR@10: the best row keeps no ranks that can be read (weak)." in note_below(rows)
    assert "†" not in note_below(rows)


def test_marks_in_markdown_and_latex():
    header, lines = ["method", "HR@10"], [["a_b", "0.3"], ["c", "0.2 ± 0.1†"], ["d", "0.1"]]
    emphasis = {(0, 1): BEST, (1, 1): SECOND}
    assert [line.split("|")[2].strip() for line in markdown(header, lines, emphasis).splitlines()[2:]] == [
        "**0.3**",
        "<u>0.2 ± 0.1†</u>",
        "0.1",
    ]
    rows = [line for line in latex(header, lines, emphasis).splitlines() if line.endswith(r"\\")]
    assert rows[1:] == [r"a\_b & \textbf{0.3} \\", r"c & \underline{0.2 $\pm$ 0.1$^\dagger$} \\", r"d & 0.1 \\"]
