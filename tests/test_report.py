"""The page of finished runs: made from artificial runs, read as HTML, and used in a browser."""

import base64
import hashlib
import json
import re
import runpy
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from test_statistics import Page

from transrec import settings
from transrec.data.dataset import load_dataset
from transrec.errors import TransrecError
from transrec.reports.report import report
from transrec.training.ranks import target_ranks, write_ranks

HOSTILE = "<script>alert(1)</script> \x1b[31m\u202e & \"'> $x_1$ _"
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Folder of a dataset of 40 users with a data card."""
    folder = tmp_path_factory.mktemp("data") / "films"
    folder.mkdir()
    items = [f"i{number}" for number in range(30)]
    (folder / "items.tsv").write_text("".join(f"{item}\ttitle {item}\n" for item in items))
    random = np.random.default_rng(0)
    lines = (f"u{user}\t{' '.join(random.choice(items, size=5 + user % 4, replace=False))}\n" for user in range(40))
    (folder / "users.tsv").write_text("".join(lines))
    (folder / "dataset.json").write_text(json.dumps({"import": {"format": HOSTILE, "rows": 1234}}))
    return folder


def make_run(folder: Path, data: Path, score: float, **more) -> Path:
    """Make a finished run of artificial numbers; `words` are its flags, `result` further content of its result.json."""
    words = ["--dataset", str(data), "--max_seq_len", "6", *more.get("words", [])]
    given = settings.parse(words, more.get("method", "frozen"), {"item_tower": "id"})
    folder.mkdir(parents=True)
    (folder / "options.json").write_text(json.dumps(given.as_dict()))
    scores = {"HR@10": score, "NDCG@10": score / 2}
    result = {
        **{"method": given.method, "item_tower": "id", "name": given.name, "dataset": data.name},
        **{"test": scores, "validation": scores, "popularity": {"HR@10": 0.05, "NDCG@10": 0.02}},
        **{"trainable_parameters": int(1e6 * score), "total_parameters": 2_000_000, "epochs_trained": 3},
        **{"checkpoint_bytes": 9, "seconds_per_epoch": 10 * score, "wall_seconds": 3.0, "peak_memory_mib": 700.0},
        **{"peak_host_memory_mib": 700.0, "phase_seconds": {"feed": 0.1}, "seed": given.training.seed},
        **{"environment": {"torch": "2.9", "device": "cpu"}},
    }
    (folder / "result.json").write_text(json.dumps(result | more.get("result", {})))
    epochs = [
        {"epoch": epoch, "train_loss": 1 / epoch, **{f"validation {name}": of / epoch for name, of in scores.items()}}
        for epoch in (1, 2, 3)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    split = load_dataset(data, 6, 5).split
    ranks = 1 + np.random.default_rng(given.training.seed).integers(20, size=len(split.test)) * (1 - score)
    write_ranks(folder, "test", target_ranks(split, "test", np.floor(ranks)))
    for baseline, middle in more.get("baselines", {}).items():
        write_ranks(folder, "test", target_ranks(split, "test", np.full(len(split.test), middle)), baseline)
    return folder


@pytest.fixture(scope="module")
def study(data, tmp_path_factory) -> Path:
    """Folder of a study of two methods, one of them with two seeds and a hostile name."""
    folder = tmp_path_factory.mktemp("study") / "study"
    for seed in ("0", "1"):
        make_run(
            folder / "runs" / f"a{seed}",
            data,
            0.3,
            words=["--seed", seed],
            result={"name": HOSTILE, "environment": {HOSTILE: [HOSTILE]}},
        )
    make_run(folder / "runs" / "b", data, 0.9, method="full", words=["--lr", "1e-2"])
    return folder


@pytest.fixture(scope="module")
def source(study) -> str:
    return report([study])


def test_a_page_of_a_study(source):
    page = Page(source)
    for part in (
        "Results",
        "Learning curves",
        "Accuracy against cost",
        "Slices",
        "Significance",
        "Settings that differ",
    ):
        assert f"<h2>{part}</h2>" in source
    assert "Copy as LaTeX" in page.text and "2 rows of 3 finished runs" in page.text
    assert page.tags["svg"] == 7 and max(page.ids.values()) == 1
    assert page.tags["script"] == 1 and "alert(1)</script>" not in source
    assert "<script>alert(1)</script> \\x1b[31m\\u202e & \"'> $x_1$ _" in page.text
    assert "\x1b" not in source and "\u202e" not in source
    assert all(address.startswith("#") for address in page.addresses) and "://" not in source
    assert "target: head" in page.text and "history: " in page.text and "over 1 pair" in page.text
    assert "--lr" in page.text and "2.9" in page.text and "1,234" in page.text
    assert "0.3000 ± 0.0000" in page.text and "popularity" in page.text
    assert r"\begin{tabular}" in page.text and "#,method,dataset,seeds,HR@10" in page.text
    assert re.search(
        r'class="said" tabindex="0" role="img" aria-label="[^"]*best training loss 0.3333 at epoch 3', source
    )


def test_baselines_are_rows_like_others(data, tmp_path):
    """Baselines may be the best of a column, appear in the slices, and every row is tested against them."""
    scores = {"popularity": {"HR@10": 0.05, "NDCG@10": 0.02}, "item_knn": {"HR@10": 0.95, "NDCG@10": 0.1, "MRR": 0.25}}
    with_baselines = {"popularity": scores.pop("popularity"), "baselines": scores}
    folders = [
        make_run(tmp_path / name, data, score, words=words, baselines={"item_knn": 9.0}, result=with_baselines)
        for name, score, words in (("a", 0.3, ["--lr", "1e-2"]), ("b", 0.9, []))
    ]
    source = report(folders)
    cells = re.findall(r'<td data-value="([^"]*)" class=best>([^<]*)</td>', source)
    assert ("0.95", "0.9500") in cells and ("0.45", "0.4500") in cells and len(cells) == 2
    text = Page(source).text
    assert "over 1 pair of rows and, by itself, over 2 pairs of a row and a baseline" in text
    assert "The table has the baselines, too: item-kNN" in text and "No baseline is tested" not in text
    alone = Page(report(folders[:1])).text
    assert "over 1 pair of a row and a baseline" in alone and "the only row with ranks" not in alone
    path = folders[0] / "ranks-test-item_knn.npy"
    path.write_bytes(path.read_bytes()[:-5])
    text = Page(report(folders)).text
    assert "ranks-test-item_knn.npy" in text and "No baseline is tested" in text and "over 1 pair of rows" in text


def test_only_what_can_be_compared_has_a_best(data, tmp_path):
    """Lower is better for some metrics, and runs that rank other items, or other users, are compared apart."""
    scores = {"HR@10": 0.3, "NDCG@10": 0.2}
    folders = [
        make_run(tmp_path / name, data, score, words=words, result={"test": scores | {"Gini@10": gini}})
        for name, score, words, gini in (
            ("a", 0.3, ["--lr", "1e-2"], 0.9),
            ("b", 0.4, [], 0.5),
            ("c", 0.5, ["--mask_history", "none"], 0.7),
        )
    ]
    page = report(folders)
    gini = [value for value, _ in re.findall(r'<td data-value="(0\.[579])" class=best>([^<]*)</td>', page)]
    assert gini == ["0.5", "0.7"]
    text = Page(page).text
    assert "popularity (as for 1, 2)" in text and "popularity (as for 3)" in text


def test_what_is_missing_is_said(study, data, tmp_path):
    lone = tmp_path / "lone"
    shutil.copytree(study / "runs" / "b", lone)
    for name in ("ranks-test.npy", "metrics.jsonl"):
        (lone / name).unlink()
    result = json.loads((lone / "result.json").read_text())
    (lone / "result.json").write_text(json.dumps({k: v for k, v in result.items() if k not in ("test", "popularity")}))
    text = Page(report([lone], title="T & T")).text
    for sentence in (
        "T & T",
        "Without test metrics",
        "metrics.jsonl: is not there",
        "There is one row over this dataset",
        "No run here keeps the ranks",
        "keeps no ranks-test.npy",
        "Tests need runs",
        "one row whose settings are known",
    ):
        assert sentence in text, sentence
    other = tmp_path / "other"
    shutil.copytree(data, other / "films")
    (other / "films" / "dataset.json").unlink()
    second = make_run(tmp_path / "second", other / "films", 0.5)
    (second / "metrics.jsonl").write_text("{")
    for name in ("unknown", "again"):
        shutil.copytree(study / "runs" / "b", tmp_path / name)
    (tmp_path / "unknown" / "options.json").unlink()
    text = Page(report([study, second, tmp_path / "unknown", tmp_path / "again"])).text
    assert "no data card" in text and "Without options.json" in text and "its settings are not known" in text
    assert "is of seed 0, too, and is not compared" in text and "over 1 pair" in text
    assert "over 2 datasets" in text and "metrics.jsonl: damaged" in text
    assert text.count("films, rows") >= 4
    assert "the only row with ranks over its test targets" in text


def test_bad_input_is_an_error_of_one_line(study, tmp_path):
    with pytest.raises(TransrecError, match="holds no finished run"):
        report([tmp_path])
    damaged = tmp_path / "damaged"
    shutil.copytree(study / "runs" / "b", damaged)
    (damaged / "result.json").write_text("[")
    with pytest.raises(TransrecError, match=r"result\.json: damaged, is not JSON"):
        report([damaged])


def test_the_script_writes_the_page(study, tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "page.html"
    monkeypatch.setattr("sys.argv", ["report.py", str(study / "runs" / "b"), "--out", str(out), "--title", "One run"])
    runpy.run_path(str(REPOSITORY / "scripts/report.py"), run_name="__main__")
    assert capsys.readouterr().out == f"page: {out}\n" and [path.name for path in out.parent.iterdir()] == ["page.html"]
    text = Page(out.read_text(encoding="utf-8")).text
    assert "One run" in text and "1 row of 1 finished run." in text


CLICKS = """
const heads = [...document.querySelectorAll("table.sortable th")];
const order = () => [...document.querySelectorAll("table.sortable tbody tr")].map(row => row.cells[0].textContent);
const head = heads.find(head => head.textContent === "HR@10");
const seen = [order()];
for (let click = 0; click < 2; click++) { head.querySelector("button").click(); seen.push(order()); }
const line = document.querySelector(".said[tabindex]");
line.focus();
const told = line.closest(".plot").querySelector(".pointed").textContent;
const plots = [...document.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().height > 100).length;
const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
document.title = JSON.stringify({seen, sorted: head.getAttribute("aria-sort"), plots, told, wide});
"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_page_in_a_browser(source, tmp_path):
    digest = base64.b64encode(hashlib.sha256(CLICKS.encode()).digest()).decode()
    page = source.replace("script-src ", f"script-src 'sha256-{digest}' ")
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", f"<script>{CLICKS}</script></body>"), encoding="utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--window-size=600,900"]
    flags += ["--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *flags, path.as_uri()], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    found = json.loads(unescape(re.search("<title>(.*?)</title>", done.stdout)[1]))
    assert found["seen"] == [["1", "2", ""], ["2", "1", ""], ["", "1", "2"]]
    assert found["sorted"] == "ascending" and found["plots"] == 7 and not found["wide"]
    assert "best training loss" in found["told"]
