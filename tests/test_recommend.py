"""Using finished runs: recommendations, embeddings, metrics, items that appeared after training."""

import csv
import json
import re
import runpy
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import FEW_STEPS, REPOSITORY, run, run_flags

import transrec
from transrec.errors import TransrecError
from transrec.models.recommender import Recommender
from transrec.reports.tables import read_result
from transrec.topk import top_items, top_scores
from transrec.training.ranks import read_ranks

NEW = 50


@pytest.fixture(scope="module")
def flags(domain, backbones) -> list[str]:
    return [*run_flags(domain, backbones), *FEW_STEPS, "--epochs", "1"]


@pytest.fixture(scope="module")
def folder(flags, tmp_path_factory):
    """Folder of a run over titles that ranks every listed item."""
    folder = tmp_path_factory.mktemp("recommend") / "run"
    metrics = ["--metrics", "hr", "ndcg", "coverage"]
    run([*flags, "--catalogue", "all", "--lr", "1e-2", *metrics, "--output", str(folder)], "full")
    return folder


@pytest.fixture
def finished_run(folder):
    return transrec.load_run(folder)


@pytest.fixture
def longer(domain, tmp_path):
    """The same dataset with new titles after the others, and a file with only the new ones."""
    shutil.copytree(domain, tmp_path / "longer", ignore=shutil.ignore_patterns(".transrec"))
    lines = "".join(f"new{number}\tnewest {word} of number {number}\n" for number, word in enumerate(["lamp"] * NEW))
    with open(tmp_path / "longer" / "items.tsv", "a", encoding="utf-8") as file:
        file.write(lines)
    (tmp_path / "new.tsv").write_text(lines)
    return tmp_path / "longer", tmp_path / "new.tsv"


@pytest.fixture
def script(folder, monkeypatch, capfd):
    """Return a function that runs scripts/recommend.py; it returns exit status, output and the last line of errors."""

    def call(*words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["recommend.py", "--run", str(folder), "--device", "cpu", *map(str, words)])
        capfd.readouterr()
        status = 0
        try:
            runpy.run_path(str(REPOSITORY / "scripts" / "recommend.py"), run_name="__main__")
        except SystemExit as left:
            status = left.code
        out, errors = capfd.readouterr()
        assert "Traceback" not in errors
        return status, out, (errors.splitlines() or [""])[-1]

    return call


def test_evaluation_gives_the_numbers_of_the_result(finished_run, folder):
    assert isinstance(finished_run, Recommender)
    for part in ("validation", "test"):
        assert finished_run.evaluate(part) == read_result(folder)[part]
    with pytest.raises(TransrecError, match="'train': must be validation or test"):
        finished_run.evaluate("train")
    with pytest.raises(TransrecError, match="'all': must be one of seen, none, seen_but_target"):
        finished_run.evaluate(mask_history="all")
    with pytest.raises(TransrecError, match="'train': must be validation or test"):
        finished_run.top_for_targets("train", 3)
    assert np.array_equal(finished_run.ranks(), read_ranks(folder, "test"))
    # The same targets as the last items of histories, for a split that hides the last item.
    sequences = finished_run.dataset.interactions.sequences
    users = finished_run.dataset.split.user_rows
    histories = [[finished_run.dataset.catalog.ids[row] for row in sequences[user]] for user in users]
    assert finished_run.evaluate(histories=histories)["HR@10"] == pytest.approx(read_result(folder)["test"]["HR@10"])
    with pytest.raises(TransrecError, match="history 1 has 1: "):
        finished_run.evaluate(histories=[histories[0][:1]])


@pytest.mark.parametrize(
    "method,more", [("frozen", []), ("iisan", ["--cached"]), ("full", ["--train_last", "1"])], ids=str
)
def test_a_run_that_reads_stored_states_gives_its_numbers(flags, longer, tmp_path, method, more):
    states = ["--state_cache", str(tmp_path / "states"), "--output", str(tmp_path / "run")]
    run([*flags, *more, *states], method)
    loaded = transrec.load_run(tmp_path / "run")
    made = sorted((tmp_path / "states").iterdir())
    whole, result = [*loaded.state_dict()], read_result(tmp_path / "run")
    assert loaded.evaluate() == result["test"]
    assert sorted((tmp_path / "states").iterdir()) == made
    assert method == "iisan" or loaded.item_encoder.backbone is not None, "the recommender keeps its backbone"
    assert [*loaded.state_dict()] == whole, "and all blocks of it"
    assert ("zero_shot" in result["baselines"]) == (method != "full"), "states of tokens stand for no item"
    loaded.add_items(longer[1])
    all_along = transrec.load_run(tmp_path / "run", dataset=longer[0])
    all_along.add_items(longer[0] / "items.tsv")
    new = [f"new{number}" for number in range(NEW)]
    np.testing.assert_allclose(loaded.embed(new), all_along.embed(new), atol=1e-5)


def test_what_is_recommended_scores_highest(finished_run):
    history = finished_run.ids[:4]
    found = finished_run.recommend(history, k=7)
    embeddings = finished_run.embed(finished_run.ids)
    assert embeddings.shape == (150, 16) and embeddings.dtype == np.float32
    items, mask = torch.zeros(1, 6, 16), torch.zeros(1, 6, dtype=torch.bool)
    items[0, 2:], mask[0, 2:] = torch.from_numpy(embeddings[:4]), True
    with torch.no_grad():
        scores = (finished_run.user_encoder(items, mask)[0, -1] @ torch.from_numpy(embeddings).T).numpy()
    np.testing.assert_allclose(scores[[finished_run.index[item] for item in found.ids]], found.scores, rtol=1e-5)
    scores[:4] = -np.inf
    assert found.scores[-1] >= np.sort(scores)[-7] - 1e-5 and not {*history} & {*found.ids}
    assert found.titles == [
        finished_run.dataset.catalog.texts[finished_run.dataset.catalog.ids.index(item)] for item in found.ids
    ]
    assert {*finished_run.recommend(history, 150, exclude_seen=False).ids} == {*finished_run.ids}
    assert len(finished_run.recommend(history, 150).ids) == 146, "what is seen is left out, so the list is shorter"
    both = finished_run.recommend([history, history[:1]], k=7)
    assert both[0].ids == found.ids and len(both) == 2


@pytest.mark.parametrize(
    "ask,problem",
    [
        (lambda run: run.recommend([run.ids[0], "nowhere"]), "item 'nowhere': neither .*items.tsv lists it nor"),
        (lambda run: run.recommend([]), "the history is empty"),
        (lambda run: run.recommend(["a", "b", "c", "d"]), "item 'a', 'b', 'c', ...: "),
        (lambda run: run.recommend([[]]), "history 1 is empty"),
        (lambda run: run.recommend([run.ids[:1]], 151), "--k 151: must be at least 1 and at most 150"),
        (lambda run: run.recommend([run.ids[:1]], 0), "--k 0: must"),
        (lambda run: run.recommend("i1 i2"), "'i1 i2': is one text; give a list"),
        (lambda run: run.embed(["nowhere"]), "item 'nowhere': "),
    ],
)
def test_what_cannot_be_asked(finished_run, ask, problem):
    with pytest.raises(TransrecError, match=problem):
        ask(finished_run)


def test_new_items_are_ranked_as_if_they_had_been_there_all_along(finished_run, folder, longer, tmp_path):
    dataset, new = longer
    all_along = transrec.load_run(folder, dataset=dataset)
    assert (
        finished_run.add_items(new) == [f"new{number}" for number in range(NEW)] and finished_run.add_items(new) == []
    )
    assert sorted(finished_run.ids) == sorted(all_along.ids) and len(finished_run.ids) == 150 + NEW
    np.testing.assert_allclose(finished_run.embed(finished_run.ids), all_along.embed(finished_run.ids), atol=1e-5)
    histories = [finished_run.ids[start : start + 5] for start in range(0, 150, 5)] + [["new3", "new4"]]
    for one, other in zip(finished_run.recommend(histories, 195), all_along.recommend(histories, 195), strict=True):
        assert one.ids == other.ids and any(item.startswith("new") for item in one.ids)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
    cold = [[*history, f"new{number}"] for number, history in enumerate(histories[:20])]
    assert finished_run.evaluate(histories=cold) == all_along.evaluate(histories=cold)
    assert finished_run.evaluate() == all_along.evaluate()


def test_item_ids_take_no_new_items(flags, longer, tmp_path):
    run([*flags, "--item_tower", "id", "--output", str(tmp_path / "run")], "full", item_tower="id")
    loaded = transrec.load_run(tmp_path / "run")
    assert loaded.evaluate() == read_result(tmp_path / "run")["test"]
    with pytest.raises(TransrecError, match="reads items by their IDs, and an ID has an embedding only where it was"):
        loaded.add_items(longer[1])
    with pytest.raises(TransrecError, match=r"longer/items.tsv: has changed since .*; restore it$"):
        transrec.load_run(tmp_path / "run", dataset=longer[0]).recommend(["i0"])


def test_a_dataset_that_has_changed_is_named(finished_run, folder, longer, tmp_path):
    options = json.loads((folder / "options.json").read_text())
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "options.json").write_text(json.dumps(options | {"dataset": str(longer[0])}))
    with pytest.raises(TransrecError, match=r"items.tsv: has changed since .* or give the dataset as it is now"):
        transrec.load_run(tmp_path / "run").evaluate()


def test_every_form_holds_the_same(script, finished_run, tmp_path):
    pyarrow = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    rows = {}
    for suffix in ("csv", "jsonl", "parquet", "md"):
        assert script("--k", 3, "--out", tmp_path / f"top.{suffix}")[0] == 0
    with open(tmp_path / "top.csv", newline="") as file:
        rows["csv"] = [row | {"rank": int(row["rank"]), "score": float(row["score"])} for row in csv.DictReader(file)]
    rows["jsonl"] = [json.loads(line) for line in (tmp_path / "top.jsonl").read_text().splitlines()]
    assert rows["csv"] == rows["jsonl"] and len(rows["csv"]) == 3 * len(finished_run.dataset.interactions.users)
    table = pyarrow.read_table(tmp_path / "top.parquet").to_pylist()
    assert [row["item"] for row in table] == [row["item"] for row in rows["csv"]]
    assert [row["score"] for row in table] == pytest.approx([row["score"] for row in rows["csv"]])
    text = (tmp_path / "top.md").read_text()
    assert text.count("\n") == 2 + len(table) and rows["csv"][0]["item"] in text
    user, sequence = finished_run.dataset.interactions.users[5], finished_run.dataset.interactions.sequences[5]
    alone = finished_run.recommend([finished_run.dataset.catalog.ids[row] for row in sequence], 3)
    assert [row["item"] for row in rows["csv"] if row["user"] == user] == alone.ids
    status, out, _ = script("--user", user, "--k", 3, "--format", "jsonl")
    assert status == 0 and [json.loads(line)["item"] for line in out.splitlines()] == alone.ids
    status, again, _ = script("--user", rows["csv"][0]["user"], "--user", user, "--k", 3, "--format", "jsonl")
    other = [row["item"] for row in rows["csv"][:3]]
    assert status == 0 and [json.loads(line)["item"] for line in again.splitlines()] == [*other, *alone.ids]


def test_users_of_a_file_and_typed_histories(script, finished_run, longer, tmp_path):
    users = tmp_path / "users.tsv"
    first = finished_run.ids[:3]
    users.write_text(f"stranger\t{' '.join(first)}\nother\t{first[0]} gone new7\nlost\tgone\n")
    status, _, error = script("--users", users)
    assert status == 2 and "users.tsv, line 2: user 'other' has item 'gone': neither" in error
    status, out, error = script("--users", users, "--skip_unknown", "--items", longer[1], "--format", "csv")
    assert status == 0 and out.count("\nstranger,") + out.count("\nother,") == 20
    assert "2 interaction(s) with items that are not ranked and 1 user(s) without any other item left out" in error
    status, out, _ = script("--history", " ".join(first), "--include_seen", "--k", 150, "--format", "csv")
    assert status == 0 and all(f",{item}," in out for item in first)
    users.write_text(f"a\t{first[0]} {first[1]} new7\nb\t{first[2]} new8\n")
    status, out, _ = script("--users", users, "--items", longer[1], "--evaluate")
    assert status == 0 and "2 targets among 200 items" in out and "HR@10" in out
    # An unknown item may be the target, and a single item leaves nothing to predict it from.
    users.write_text(f"a\t{first[0]} {first[1]} new7\nb\t{first[2]} {first[1]} gone\nc\t{first[0]}\n")
    status, out, error = script("--users", users, "--items", longer[1], "--evaluate", "--skip_unknown")
    assert status == 0 and "1 targets among 200 items" in out
    assert "and 2 user(s) with a single item, or with an item that is not ranked left out" in error
    users.write_text("lost\tgone\n")
    status, _, error = script("--users", users, "--skip_unknown")
    assert status == 2 and "none of the histories holds an item that is ranked" in error


@pytest.mark.parametrize(
    "words,problem",
    [
        (["--user", "nobody"], "--user 'nobody': .* has no such user; check the id"),
        (["--history", "nowhere"], "item 'nowhere': neither"),
        (["--history", " "], "--history ' ': has no items"),
        (["--k", "1000"], "--k 1000: must be at least 1 and at most 150"),
        (["--out", "top.xls"], "--out top.xls: its name must end in .csv"),
        (["--format", "parquet"], "--format parquet: needs a file"),
        (["--images", "x.lmdb"], "give --items, too"),
        (["--evaluate", "--include_seen"], "--include_seen: not with --evaluate"),
        (["--evaluate", "--out", "top.csv"], "--out: not with --evaluate"),
        (["--items", "nowhere.tsv"], "nowhere.tsv: cannot read the items file"),
        (["--users", "nowhere.tsv"], "nowhere.tsv: cannot read the users file"),
        (["--run", "nowhere"], "nowhere: holds no run"),
    ],
)
def test_a_mistake_is_one_line(script, words, problem):
    status, out, error = script(*words)
    assert status == 2 and not out
    assert re.search(problem, error), error


def test_titles_of_others_are_printed_as_text(script, finished_run, tmp_path):
    (tmp_path / "new.tsv").write_text("evil\t<script>alert(1)</script>\x1b[31m red | x\n")
    words = ["--items", tmp_path / "new.tsv", "--history", finished_run.ids[0], "--k", 150]
    for kind in ("table", "csv", "jsonl"):
        status, out, _ = script(*words, "--format", kind)
        assert status == 0 and "\x1b" not in out and "alert(1)" in out
        assert ("&lt;script&gt;" in out) == (kind == "table")


@pytest.mark.parametrize("count", [5, 40, 1000])
@pytest.mark.parametrize("memory", [1, 2**13, 2**30])
def test_the_best_equal_a_stable_sort(count, memory):
    """With many equal scores, with all chunk sizes, and with items left out."""
    generator = torch.Generator().manual_seed(count)
    for levels in (2, 5, 1000):
        users = torch.randint(0, levels, (7, 2), generator=generator).float()
        items = torch.randint(0, levels, (count, 2), generator=generator).float()
        seen = torch.randint(0, count, (20,), generator=generator), torch.randint(0, 7, (20,), generator=generator)
        scores = users @ items.T
        scores[seen[1], seen[0]] = -torch.inf
        for k in (1, 5):
            values, found = top_items(users, items, seen, k, memory)
            wanted, places = scores.sort(dim=1, descending=True, stable=True)
            assert torch.equal(values, wanted[:, :k])
            real = values > -torch.inf
            assert torch.equal(found[real], places[:, :k][real])
    assert torch.equal(top_scores(torch.zeros(2, 500), 3)[1], torch.arange(3).expand(2, 3))
