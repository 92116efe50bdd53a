"""Comparing finished runs by the ranks that they kept: metrics, slices and tests without a model."""

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import FEW_STEPS, REPOSITORY, run

from transrec.data.dataset import load_dataset
from transrec.data.interactions import Interactions, leave_one_out
from transrec.errors import TransrecError
from transrec.finished import sequences_of, with_values
from transrec.reports.comparison import Comparison, distinguishing_settings, metrics_at
from transrec.reports.reranking import Reranking
from transrec.reports.slices import SLICES, Targets
from transrec.reports.trec import queries, write_qrels
from transrec.settings import read_settings
from transrec.training.metrics import METRICS as ENTRIES
from transrec.training.metrics import Ranking
from transrec.training.ranks import RANK, WITHOUT_MARGIN, ranks_file, read_ranks, write_ranks

SCRIPT = REPOSITORY / "scripts" / "evaluate.py"
METRICS = ["hr", "ndcg", "mrr", "auc"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, domain, backbones) -> dict[str, Path]:
    """Folders of runs of two methods, one of them with two seeds."""
    root = tmp_path_factory.mktemp("runs")
    folders = {}
    for name, method, more in (
        ("first", "frozen", []),
        ("second", "frozen", ["--seed", "1"]),
        ("ids", "full", ["--item_tower", "id", "--lr", "1e-2"]),
    ):
        folders[name] = root / name
        run([*flags_of(domain, backbones), *more, "--output", str(folders[name])], method)
    return folders


def flags_of(domain, backbones) -> list[str]:
    sizes = ["--embedding_dim", "16", "--max_seq_len", "6", "--title_tokens", "10", *FEW_STEPS, "--epochs", "1"]
    return ["--dataset", str(domain), "--text_encoder", str(backbones["bert"]), *sizes]


def test_kept_ranks_give_the_metrics_of_the_run(runs):
    for part in ("validation", "test"):
        comparison = Comparison(runs.values(), part)
        assert [(method.name, method.seeds) for method in comparison.methods] == [
            ("frozen over titles", [0, 1]),
            ("full over item IDs", [0]),
        ]
        rows = comparison.rows(metrics_at(METRICS, [5, 10]))
        for row, names in zip(rows, (("first", "second"), ("ids",)), strict=True):
            results = [json.loads((runs[name] / "result.json").read_text())[part] for name in names]
            for metric in results[0]:
                if "@20" not in metric:
                    assert row[metric] == pytest.approx(np.mean([result[metric] for result in results]), abs=1e-12)
            assert 0 < row["AUC"] < 1


def test_slices_divide_the_targets(runs, domain):
    comparison = Comparison(runs.values())
    rows = comparison.rows(metrics_at(["hr"], [10]), ["popularity", "history"])
    of_first = [row for row in rows if row["method"] == "frozen over titles"]
    whole = of_first[0]
    for label in ("target", "history"):
        parts = [row for row in of_first if row["slice"].startswith(f"{label}: ")]
        assert len(parts) > 1 and sum(row["targets"] for row in parts) == whole["targets"]
        hits = sum(row["targets"] * row["HR@10"] for row in parts)
        assert hits == pytest.approx(whole["targets"] * whole["HR@10"])


def test_slices_by_popularity_hold_a_third_of_the_interactions_each(domain):
    dataset = load_dataset(domain, 6, 5)
    counts = dataset.split.train_counts()
    names, index = SLICES.get("popularity")().groups(Targets(dataset, "test"))
    items = Targets(dataset, "test").items
    assert names == ["head", "middle", "tail", "cold"]
    assert np.array_equal(counts[items] == 0, index == 3)
    least, most = counts[items[index == 0]].min(), counts[items[index == 2]].max()
    assert least >= counts[items[index == 1]].max() >= most > 0


def test_slices_by_time_and_category(tmp_path, domain):
    pa, parquet = (
        pytest.importorskip(name, reason="pyarrow is not installed") for name in ("pyarrow", "pyarrow.parquet")
    )
    users = [f"u{user}" for user in range(30) for _ in range(6)]
    items = [f"i{(user * 7 + place * 3) % 20}" for user in range(30) for place in range(6)]
    times = [1_500_000_000 + 86_400 * (user + 40 * place) for user in range(30) for place in range(6)]
    table = pa.table({"user_id": users, "item_id": items, "time": pa.array(times, pa.int64())})
    parquet.write_table(table, tmp_path / "interactions.parquet")
    lines = [f"i{item}\ttitle {item}\t{'books' if item % 3 else 'films'}" for item in range(20)]
    (tmp_path / "items.tsv").write_text("\n".join(["item_id\ttitle\tcategory", *lines]) + "\n")
    by_time = load_dataset(tmp_path, 6, 5, splitting=splitting("time"))
    targets = Targets(by_time, "test")
    names, index = SLICES.get("category")().groups(targets)
    assert names == ["books", "films"]
    rows = by_time.split.item_rows[targets.items - 1]
    assert np.array_equal(index == 1, rows % 3 == 0)
    names, index = SLICES.get("time")().groups(targets)
    assert len(names) > 1 and all(" to " in name and name.startswith("2018") for name in names)
    happened = by_time.split.times[by_time.split.targets("test")[1]]
    assert (np.diff([happened[index == number].min() for number in range(len(names))]) > 0).all()
    with pytest.raises(TransrecError, match=r"--slices time: .* has no times"):
        SLICES.get("time")().groups(Targets(load_dataset(domain, 6, 5), "test"))


def splitting(kind: str):
    from transrec.data.splits import Splitting

    return Splitting(kind)


def test_the_best_method_is_told_from_the_others(runs):
    comparison = Comparison(runs.values())
    (metric,) = metrics_at(["ndcg"], [10])
    best, other = comparison.tests_against_best(metric, "Wilcoxon", "holm")
    assert best["NDCG@10"] > other["NDCG@10"] and best["p"] == "" and 0 <= other["p"] <= 1
    assert best["low"] <= best["NDCG@10"] <= best["high"]
    with pytest.raises(TransrecError, match="McNemar: compares hits, and NDCG@10 is none"):
        comparison.tests_against_best(metric, "McNemar", "holm")


def test_margins_are_kept_and_ranks_of_earlier_releases_read(runs, tmp_path):
    for baseline in ("", "popularity", "item_knn"):
        kept = read_ranks(runs["ids"], "test", baseline)
        ranked = np.isfinite(kept["rank"])
        assert ranked.any() and (kept["margin"][~ranked] == -np.inf).all()
        # The margin of rank 1 is positive, that of a tie is 0, and that of lower ranks is negative.
        assert (np.sign(kept["margin"][ranked]) <= 0)[kept["rank"][ranked] > 1].all()
        assert (kept["rank"][ranked] == 1)[kept["margin"][ranked] > 0].all()
    earlier = np.array(kept[["user", "item", "rank"]], WITHOUT_MARGIN)
    write_ranks(tmp_path, "test", earlier)
    found = read_ranks(tmp_path, "test")
    assert np.isnan(found["margin"]).all() and np.array_equal(found["rank"], kept["rank"])


def test_metrics_of_what_is_recommended_are_computed_by_the_models(runs, domain, backbones, tmp_path, capsys):
    names = [name for name in ENTRIES.names() if ENTRIES.get(name).needs_lists]
    assert {"coverage", "gini", "diversity"} <= set(names)
    flags = [*flags_of(domain, backbones), "--item_tower", "id", "--metrics", "hr", *names, "--output", str(tmp_path)]
    expected = run(flags, "full")["test"]
    comparison = Comparison([tmp_path, runs["first"]])
    with_slices = comparison.rows(metrics_at(["hr", *names], [5, 10]), ["popularity"])
    (own, _), of_slices = with_slices[:2], with_slices[2:]
    for name in names:
        label = ENTRIES.get(name).label
        assert own[f"{label}@10"] == pytest.approx(expected[f"{label}@10"], abs=1e-12)
        assert any(row[f"{label}@10"] != own[f"{label}@10"] for row in of_slices if row["method"] == own["method"])
    assert capsys.readouterr().err.count("ranks anew: ") == 2, "once each"


def test_baselines_are_compared_by_the_ranks_that_runs_keep_of_them(runs):
    comparison = Comparison(runs.values(), baselines=["popularity", "item_knn", "zero_shot"])
    names = [method.name for method in comparison.baselines]
    assert names == ["popularity", "item-kNN", "cosine of frozen embeddings"]
    assert comparison.baselines[0].folders == list(runs.values()), "what all runs rank alike is there once"
    results = {name: json.loads((folder / "result.json").read_text()) for name, folder in runs.items()}
    rows = {row["method"]: row for row in comparison.rows(metrics_at(METRICS, [10]))}
    kept = {"popularity": results["ids"]["popularity"], "item-kNN": results["ids"]["baselines"]["item_knn"]}
    for name, scores in kept.items():
        assert rows[name]["seeds"] == 0 and rows[name]["HR@10 deviation"] == ""
        assert [rows[name][metric] for metric in ("HR@10", "NDCG@10", "MRR")] == pytest.approx(
            [scores[metric] for metric in ("HR@10", "NDCG@10", "MRR")], abs=1e-12
        )
    (metric,) = metrics_at(["ndcg"], [10])
    tested = comparison.tests_against_best(metric, "Wilcoxon", "holm")
    assert {row["method"] for row in tested} == rows.keys() and sum(row["p"] == "" for row in tested) == 1
    matrix = comparison.pairwise_tests(metric, "Wilcoxon", "holm")
    assert matrix.keys() == {(0, 1), *((method, baseline) for method in (0, 1) for baseline in (2, 3, 4))}
    assert matrix[0, 1] == Comparison(runs.values()).pairwise_tests(metric, "Wilcoxon", "holm")[0, 1]
    with pytest.raises(TransrecError, match="--baselines popularity: ranks only the test targets"):
        Comparison(runs.values(), "validation", baselines=["popularity"])
    with pytest.raises(TransrecError, match="--baselines zero_shot: no run keeps ranks of it"):
        Comparison([runs["ids"]], baselines=["zero_shot"])


def test_unlike_rankings_of_one_baseline_are_told_apart(runs, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(runs["ids"], copy)
    kept = np.array(read_ranks(copy, "test", "item_knn"))
    kept["rank"] += 1
    write_ranks(copy, "test", kept, "item_knn")
    first, second = Comparison([runs["first"], copy], baselines=["item_knn"]).baselines
    assert (first.name, second.name) == ("item-kNN (first)", "item-kNN (copy)")
    assert np.array_equal(first.ranks + 1, second.ranks)


def test_a_run_is_ranked_anew_as_another_was_that_was_told_so(runs, domain, backbones, tmp_path, monkeypatch, capsys):
    """Both models are the same, since masking and catalogue do not affect training with in_batch."""
    plain, ranks_all_items = tmp_path / "plain", tmp_path / "otherwise"
    flags = [*flags_of(domain, backbones), "--objective", "in_batch"]
    run([*flags, "--output", str(plain)], "frozen")
    run([*flags, "--mask_history", "none", "--catalogue", "all", "--output", str(ranks_all_items)], "frozen")
    reranking = Reranking("none", "all")
    (first,), (other,) = (Comparison([folder], reranking=reranking).methods for folder in (plain, ranks_all_items))
    assert np.array_equal(first.ranks, other.ranks) and not np.array_equal(first.ranks[0], kept_ranks(plain))
    assert np.array_equal(other.ranks[0], kept_ranks(ranks_all_items)), "nothing is ranked that the run keeps"
    masked = Comparison([ranks_all_items], reranking=Reranking("seen_but_target"))
    assert (masked.methods[0].ranks <= other.ranks).all() and np.isfinite(masked.methods[0].ranks).all()
    counts = [Comparison([plain], reranking=options).dataset.split.item_count for options in (reranking, None)]
    assert counts[0] > counts[1]
    capsys.readouterr()
    assert evaluate([str(ranks_all_items), "--mask_history", "seen", "--device", "cpu"], monkeypatch) == 0
    assert f"ranks anew: {ranks_all_items}" in capsys.readouterr().err
    for word, line in (("--catalogue", "reads items by their IDs"), ("--baselines", "is kept as the runs ranked")):
        more = {"--catalogue": ["all"], "--baselines": ["item_knn", "--mask_history", "none"]}[word]
        assert evaluate([str(runs["ids"]), word, *more, "--device", "cpu"], monkeypatch) == 2
        assert line in capsys.readouterr().err


def kept_ranks(folder: Path) -> np.ndarray:
    return read_ranks(folder, "test")["rank"]


@pytest.mark.parametrize("mask_history", ["seen", "none", "seen_but_target"])
def test_trec_files_give_the_metrics_of_the_ranks(runs, tmp_path, monkeypatch, mask_history):
    given = [str(runs["ids"]), "--mask_history", mask_history, "--device", "cpu", "--trec", str(tmp_path)]
    assert evaluate([*given, "--trec_depth", "20", "--out", str(tmp_path / "rows.csv")], monkeypatch) == 0
    with open(tmp_path / "rows.csv", newline="") as file:
        (ours,) = csv.DictReader(file)
    relevant = {query: item for query, _, item, _ in lines_of(tmp_path / "test.qrels")}
    found: dict[str, list[tuple[float, str]]] = {}
    for query, _, item, rank, score, tag in lines_of(tmp_path / "ids.run"):
        found.setdefault(query, []).append((float(score), item))
        assert int(rank) == len(found[query]) and tag == "ids"
    assert found.keys() == relevant.keys() and len(relevant) == int(ours["targets"])
    places = []
    for query, items in found.items():
        assert len(items) <= 20 and items == sorted(items, key=lambda entry: -entry[0])
        names = [item for _, item in items]
        places.append(names.index(relevant[query]) + 1 if relevant[query] in names else np.inf)
    for metric in metrics_at(["hr", "ndcg"], [10]):
        assert metric.metric(Ranking(np.array(places)), metric.cutoff) == pytest.approx(
            float(ours[metric.name]), abs=1e-12
        )


def lines_of(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()]


def test_trec_files_are_read_by_an_independent_evaluator(runs, tmp_path, monkeypatch):
    ir_measures = pytest.importorskip("ir_measures", reason="ir-measures is not installed")
    given = [str(runs["ids"]), "--part", "validation", "--device", "cpu", "--trec", str(tmp_path)]
    assert evaluate(given, monkeypatch) == 0
    judged = list(ir_measures.read_trec_qrels(str(tmp_path / "validation.qrels")))
    listed = list(ir_measures.read_trec_run(str(tmp_path / "ids.run")))
    measured = ir_measures.calc_aggregate([ir_measures.nDCG @ 10, ir_measures.Success @ 10], judged, listed)
    result = json.loads((runs["ids"] / "result.json").read_text())["validation"]
    assert measured[ir_measures.nDCG @ 10] == pytest.approx(result["NDCG@10"])
    assert measured[ir_measures.Success @ 10] == pytest.approx(result["HR@10"])


def test_queries_are_words_of_their_own(tmp_path, monkeypatch):
    """Queries are unique words for users with several targets and for ids that contain white space."""
    items = [f"i {number}" for number in range(6)]
    split = leave_one_out(
        Interactions(tmp_path, ["a b", "c%"], sequences_of([np.arange(6), np.arange(6)[::-1]])), 5, 5, 6
    )
    split = replace(split, test_starts=split.kept.starts + 3)
    stub_run = SimpleNamespace(
        dataset=SimpleNamespace(split=split, interactions=SimpleNamespace(users=["a b", "c%"])), ids=items
    )
    assert queries(stub_run, "test") == ["a%20b:1", "a%20b:2", "a%20b:3", "c%25:1", "c%25:2", "c%25:3"]
    assert queries(stub_run, "validation") == []
    write_qrels(stub_run, "test", tmp_path / "test.qrels")
    assert lines_of(tmp_path / "test.qrels")[:2] == [["a%20b:1", "0", "i%203", "1"], ["a%20b:2", "0", "i%204", "1"]]


def test_the_script(runs, tmp_path, monkeypatch, capsys):
    words = [
        *map(str, runs.values()),
        "--slices",
        "popularity",
        "--baselines",
        "item_knn",
        "--out",
        str(tmp_path / "rows.csv"),
    ]
    assert evaluate(words, monkeypatch) == 0
    output = capsys.readouterr().out
    assert (
        "frozen over titles" in output
        and "item-kNN" in output
        and "target: head" in output
        and "differs from the best" in output
    )
    assert (tmp_path / "rows.csv").read_text().startswith("slice,targets,method,seeds,HR@10,HR@10 deviation,")


def test_mcnemar_tests_hits_unless_told_otherwise(runs, monkeypatch, capsys):
    words = [str(runs["first"]), str(runs["ids"]), "--test", "McNemar"]
    assert evaluate(words, monkeypatch) == 0
    assert "p: McNemar against the best" in capsys.readouterr().out
    assert evaluate([*words, "--test_metric", "ndcg"], monkeypatch) == 2
    printed = capsys.readouterr()
    assert "compares hits, and NDCG@10 is none" in printed.err and not printed.out


def test_runs_that_stop_or_start_elsewhere_are_other_methods(runs, tmp_path):
    settings = {name: read_settings(folder) for name, folder in runs.items()}
    first = distinguishing_settings(settings["first"])
    assert first == distinguishing_settings(settings["second"])
    for flag, value in (("epochs", 9), ("patience", 9), ("patience_steps", 9)):
        assert first != distinguishing_settings(with_values(settings["second"], **{flag: value}))

    def from_checkpoint(place) -> dict:
        return distinguishing_settings(with_values(settings["first"], checkpoint=str(place)))

    best = runs["second"] / "checkpoints" / "best.safetensors"
    assert from_checkpoint(runs["first"]) == from_checkpoint(runs["second"]) == from_checkpoint(best) != first
    assert from_checkpoint(runs["ids"]) != from_checkpoint(runs["first"])
    assert from_checkpoint(tmp_path / "gone")["checkpoint"] == str(tmp_path / "gone")


def test_methods_and_folders_of_one_name_are_told_apart(runs, tmp_path):
    for place, lr in (("a", "1e-2"), ("b", "1e-5")):
        copy = shutil.copytree(runs["first"], tmp_path / place / "seed0")
        options = json.loads((copy / "options.json").read_text())
        (copy / "options.json").write_text(json.dumps(options | {"lr": float(lr)}))
        if place == "b":
            ranks = np.array(read_ranks(copy, "test"))
            ranks["rank"] += 1
            write_ranks(copy, "test", ranks)
    comparison = Comparison([tmp_path / "a" / "seed0", tmp_path / "b" / "seed0"])
    assert [method.name for method in comparison.methods] == [
        f"frozen over titles ({place}/seed0)" for place in ("a", "b")
    ]
    (metric,) = metrics_at(["mrr"], [10])
    rows = comparison.tests_against_best(metric, "paired t", "holm")
    assert [row["method"][-8:-1] for row in rows] == ["a/seed0", "b/seed0"] and rows[0]["MRR"] > rows[1]["MRR"]


def test_runs_that_rank_other_items_are_compared_with_a_warning(runs, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(runs["second"], copy)
    options = json.loads((copy / "options.json").read_text())
    (copy / "options.json").write_text(json.dumps(options | {"mask_history": "none"}))
    Comparison([runs["first"], runs["second"]])
    assert not capsys.readouterr().err
    Comparison([runs["first"], copy])
    warning = "warning: the runs rank different items, with --mask_history none and seen, so their metrics are not"
    assert warning in capsys.readouterr().err


def test_the_table_is_written_where_the_user_stands(runs, tmp_path, monkeypatch):
    """A file of the same name in the repository is no reason to write there."""
    monkeypatch.chdir(tmp_path)
    before = (REPOSITORY / "requirements.txt").read_bytes()
    assert evaluate([str(runs["first"]), "--out", "requirements.txt"], monkeypatch) == 0
    assert (tmp_path / "requirements.txt").read_text().startswith("slice,targets,method")
    assert (REPOSITORY / "requirements.txt").read_bytes() == before


def evaluate(words, monkeypatch) -> int:
    """Run the script in this process and return its exit status."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    space = {"__name__": "__main__", "__file__": str(SCRIPT), "__doc__": "evaluate"}
    try:
        exec(compile(SCRIPT.read_text(), str(SCRIPT), "exec"), space)
    except SystemExit as leave:
        return int(leave.code or 0)
    return 0


def test_what_cannot_be_compared_is_one_line(runs, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(runs["first"], copy)

    def error_line(*words: str) -> str:
        assert evaluate([str(copy), str(runs["ids"]), *words], monkeypatch) == 2
        printed = capsys.readouterr()
        (line,) = printed.err.splitlines()
        assert not printed.out
        return line

    assert "computed from lists of recommended items" in error_line(
        "--metrics", "coverage", "--baselines", "popularity"
    )
    assert "--metrics hrr: unknown; did you mean hr" in error_line("--metrics", "hrr")
    assert "--test_metric HR@10: unknown; choose from auc" in error_line("--test_metric", "HR@10")
    assert "--baselines item_kn: unknown; did you mean item_knn" in error_line("--baselines", "item_kn")
    assert "--cutoffs 0: must be at least 1" in error_line("--cutoffs", "10", "0")
    assert "--test_cutoff 0: must be at least 1" in error_line("--test_cutoff", "0")
    kept = np.array(read_ranks(copy, "test"))
    for damage, line in (
        (kept[:-1], "was not evaluated on the same test targets as"),
        (kept["rank"], "holds float32 [60], not ranks"),
        (np.zeros(len(kept), RANK), "damaged, ranks begin at 1"),
    ):
        write_ranks(copy, "test", damage)
        assert line in error_line()
    path = ranks_file(copy, "test")
    path.write_bytes(path.read_bytes()[:-5])
    assert "cut off" in error_line()
    path.unlink()
    assert "keeps no ranks-test.npy" in error_line() and "--resume" in error_line()
    ranks_file(copy, "validation").unlink()
    assert "keeps no ranks-validation.npy" in error_line("--part", "validation")
    assert "train the run again" in error_line("--part", "validation")
    write_ranks(copy, "test", kept)
    assert evaluate([str(copy), str(runs["first"])], monkeypatch) == 2
    assert "one run of one seed twice" in capsys.readouterr().err
