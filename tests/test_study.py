"""Studies: grids, the runs that they make, stopping and continuing, tables."""

import csv
import json
import os
import re
import runpy
import shutil
import signal
import statistics
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from conftest import ENCODERS, REPOSITORY

import transrec
from transrec.data.dataset import load_dataset
from transrec.data.demo import make_text_backbone
from transrec.errors import TransrecError
from transrec.reports.tables import NUMBERS, comma_separated, latex, mean_and_spread, read_result
from transrec.studies import Axis, Grid, Study, Workers, encoder_axis, main
from transrec.studies.grids import LAYER_CHOICES
from transrec.training.ranks import RANK, write_ranks
from transrec.training.run import Run

pytestmark = pytest.mark.usefixtures("quick_starts")

GRID = Grid((Axis("objective", ("bce", "cpc")), Axis("method", ("frozen", "houlsby"))))


def make(source, target, tmp_path, grid=GRID, seeds=(0,), **given) -> Study:
    flags = {tuple(name.rpartition(".")[::2]): value for name, value in given.items()}
    return Study(source, target, tmp_path / "out", grid, list(seeds), flags)


@pytest.fixture
def encoder(backbones) -> dict:
    return {"text_encoder": [str(backbones["bert"])], "max_seq_len": ["6"]}


def test_a_grid_crosses_its_axes_or_varies_them_singly():
    axes = (Axis("a", ("1", "2", "3")), Axis("b", ("x", "y")), Axis("c", ("p", "q")))
    assert len(Grid(axes).points()) == 12
    singly = Grid(axes, singly=("a", "b")).points()
    assert [(p["a"], p["b"]) for p in singly if p["c"] == "p"] == [("1", "x"), ("1", "y"), ("2", "x"), ("3", "x")]
    assert len(singly) == 8
    assert len(Grid((Axis("a", ("1", "1", "2")),)).points()) == 2


def test_runs_get_the_flags_that_are_theirs(domain, encoder, tmp_path):
    grid = Grid(
        (
            Axis("objective", ("bce", "cpc")),
            Axis("method", ("frozen", "houlsby", "lora:published")),
            Axis("insert", ("all", "user")),
            Axis("part", ("0.5",), flags=("source.user_fraction",)),
        )
    )
    given = encoder | {"source.epochs": ["7"], "adapter_lr": ["1e-3"], "lora.item_rank": ["3"], "epochs": ["2"]}
    study = make(domain, domain, tmp_path, grid, seeds=(0, 1), **given)
    sources = [job for _, job in study.sources.values()]
    assert [job.flags["objective"] for job in sources] == [["bce"], ["cpc"]], "one source run an objective"
    for job in sources:
        assert (job.flags["epochs"], job.flags["user_fraction"]) == (["7"], ["0.5"])
        assert not job.flags.keys() & {"adapter_lr", "insert", "item_rank", "checkpoint"}
    for point, jobs in study.rows:
        assert [job.flags["seed"] for job in jobs] == [["0"], ["1"]]
        for job in jobs:
            method = point["method"].partition(":")[0]
            assert job.start.flags["objective"] == job.flags["objective"] == [point["objective"]]
            assert job.flags["epochs"] == ["2"] and "user_fraction" not in job.flags
            assert ("adapter_lr" in job.flags, "insert" in job.flags) == (method != "frozen",) * 2
            assert job.flags.get("item_rank") == (["3"] if method == "lora" else None)
            assert job.flags.get("variant") == (["published"] if method == "lora" else None)
            assert job.command[-4:-2] == ["--checkpoint", str(job.start.folder)]
            assert Path(job.command[1]).exists()


def test_an_axis_that_does_not_touch_a_method_gives_one_row(domain, encoder, tmp_path):
    grid = Grid(
        (
            Axis("insert", ("all", "user")),
            Axis("method", ("full", "houlsby", "lora:published")),
            Axis("bottleneck", ("8/2", "4/2"), flags=("item_bottleneck", "user_bottleneck")),
            Axis("part", ("1", "0.5"), flags=("source.user_fraction",)),
        )
    )
    study = make(None, domain, tmp_path, grid, seeds=(0, 1), **encoder)
    assert [tuple(point.values()) for point, _ in study.rows] == [
        ("-", "full", "-", "-"),
        ("all", "houlsby", "8/2", "-"),
        ("all", "houlsby", "4/2", "-"),
        ("all", "lora:published", "-", "-"),
        ("user", "houlsby", "8/2", "-"),
        ("user", "houlsby", "4/2", "-"),
        ("user", "lora:published", "-", "-"),
    ]
    assert len({job.folder for job in study.jobs}) == len(study.jobs) == 14
    assert study.rows[0][1][1].name == "full-seed1"
    assert study.idle_axes == {
        "full": {"insert", "bottleneck", "part"},
        "houlsby": {"part"},
        "lora": {"bottleneck", "part"},
    }
    # With a source, the share of it that is used for training matters to all rows.
    assert len(make(domain, domain, tmp_path, grid, **encoder).rows) == 2 * 7


def test_a_folder_is_named_after_what_decides_the_numbers(domain, encoder, tmp_path):
    def folders(source=domain, target=domain, **more):
        return [job.folder.name for job in make(source, target, tmp_path, **(encoder | more)).jobs]

    first = folders()
    assert len(set(first)) == 6
    assert folders(nproc=["2"], eval_memory=["8"]) == first
    for flag in ("epochs", "patience", "patience_steps"):
        assert not set(folders(**{flag: ["3"]})) & set(first)
    changed = folders(**{"source.epochs": ["3"]})
    assert not set(changed) & set(first), "what starts from another source run is another run"
    assert set(folders(**{"houlsby.adapter_lr": ["1e-2"]})) & set(first) == {f for f in first if "houlsby" not in f}

    moved = tmp_path / "moved"
    shutil.copytree(domain, moved)
    assert folders(target=moved) == first
    with open(next(moved.glob("*users*.tsv")), "a") as file:
        items = (moved / "items.tsv").read_text().split("\n")[:5]
        file.write("someone new\t" + " ".join(line.split("\t")[0] for line in items) + "\n")
    assert [a == b for a, b in zip(folders(target=moved), first, strict=True)] == [True, True] + [False] * 4


def test_without_a_source_nothing_is_pretrained(domain, encoder, tmp_path):
    study = make(None, domain, tmp_path, **encoder)
    assert not study.sources and all(job.start is None for job in study.jobs)
    fractions = Grid((Axis("source_fraction", ("1", "0"), flags=("source.user_fraction",)),))
    (_, (one,)), (_, (zero,)) = make(domain, domain, tmp_path, fractions, **encoder).rows
    assert one.start is not None and zero.start is None


@pytest.mark.parametrize(
    "words,message",
    [
        (["--foo", "3"], "--foo: no such flag"),
        (["--item_rank", "3"], "--item_rank: no run of this study has such a flag"),
        (
            ["--sauce.epochs", "3"],
            "--sauce.epochs: the word before the dot must be source, target or a method, not 'sauce'",
        ),
        (["--seed", "3"], "--seed: the study sets it itself"),
        (["--checkpoint", "x"], "--checkpoint: the study sets it itself"),
        (["--item_tower", "image"], "--item_tower: the study sets it itself; give --modality"),
        (["--target.objective", "cpc"], "is an axis of this study; give its values with --objective"),
        (["--workers", "1", "stray"], "unknown: stray"),
        (["--workers", "0"], "--workers 0: must be at least 1"),
        (["--seeds", "1", "0", "1"], "--seeds 1 0 1: give each seed once"),
        (["--heads", "3"], "--embedding_dim 64 cannot be divided among --heads 3; choose a divisor (run "),
        (["--title_tokens", "99"], "99 tokens per text, prompts included, and the text encoder takes 40 (run "),
        (["--method", "hulsby"], "--method hulsby: unknown; did you mean houlsby? choose from"),
        (["--houlsby.item_bottleneck", "0"], "--item_bottleneck 0: must be at least 1"),
        (["--target", "/nowhere"], "/nowhere: no such dataset folder"),
    ],
)
def test_mistakes_are_told_before_the_first_run(domain, backbones, tmp_path, capsys, words, message):
    arguments = ["--source", str(domain), "--target", str(domain), "--out", str(tmp_path / "out")]
    arguments += ["--text_encoder", str(backbones["bert"]), "--method", "frozen", "houlsby", *words]
    with pytest.raises(SystemExit) as left:
        main("", GRID, arguments)
    assert left.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_value_for_several_flags():
    axis = Axis("bottleneck", ("8/2",), flags=("item_bottleneck", "user_bottleneck"))
    assert axis.settings("8/2") == {"item_bottleneck": "8", "user_bottleneck": "2"}
    with pytest.raises(TransrecError, match="--bottleneck 8: give ITEM_BOTTLENECK/USER_BOTTLENECK"):
        axis.settings("8")


@pytest.fixture
def dry_run(domain, tmp_path, monkeypatch, capsys):
    """Return a function that dry-runs a study's script in this process; it returns status, output and errors."""

    def call(name: str, *words: str):
        command = [name, "--target", str(domain), "--out", str(tmp_path), "--dry_run", *words]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(REPOSITORY / "scripts" / f"{name}.py"), run_name="__main__")
        return left.value.code, *capsys.readouterr()

    return call


@pytest.mark.parametrize(
    "name", ["study_adapters", pytest.param("study_insertion", marks=pytest.mark.long), "study_scaling"]
)
def test_the_studies_of_the_paper(name, dry_run, domain, backbones, tmp_path):
    """Every flag of each grid exists in its runs; a dry run prints the runs without starting them."""
    chosen = [backbones[kind] for kind in ENCODERS] if name == "study_adapters" else [backbones["bert"]]
    flag = "--encoder" if name == "study_adapters" else "--text_encoder"
    few_tokens = ["--title_tokens", "9", *(["--prompt.n_tokens", "9"] if name == "study_adapters" else [])]
    status, output, errors = dry_run(name, "--source", str(domain), flag, *map(str, chosen), *few_tokens)
    assert status == 0, errors
    rows, sources = {"study_adapters": (52, 4), "study_insertion": (60, 1), "study_scaling": (24, 4)}[name]
    assert f"{rows} rows, {rows + sources} runs of which 0 are done" in output
    assert not (tmp_path / "runs").exists()


def test_a_study_over_images(domain, backbones, tmp_path, capsys):
    grid = Grid((encoder_axis(), Axis("method", ("houlsby", "pfeiffer"))))
    words = ["--source", str(domain), "--target", str(domain), "--modality", "image", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as left:
        main("", grid, [*words, "--encoder", str(backbones["vit"]), "--dry_run"])
    assert left.value.code == 0
    source, *targets = [line for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]
    for line, method in zip((source, *targets), ("full", "houlsby", "pfeiffer"), strict=True):
        assert f"train.py --method {method} --item_tower image --image_encoder {backbones['vit']} --dataset" in line
    with pytest.raises(SystemExit) as left:
        main("", grid, [*words, "--dry_run"])
    assert left.value.code == 2
    assert "no image encoder found for 'google/vit-base-patch16-224'" in capsys.readouterr().err


def test_a_study_over_titles_and_images(dry_run, domain, backbones, tmp_path):
    """The objective is IISAN's, an axis of backbones names both backbones, and a source is pretrained on."""
    text, other, image = (str(backbones[kind]) for kind in ("bert", "roberta", "vit"))
    words = ["--modality", "multimodal", "--method", "houlsby", "compacter", "iisan", "--encoder"]
    status, output, errors = dry_run("study_adapters", *words, f"{text},{image}", f"{other},{image}")
    assert status == 0, errors
    runs = [line for line in output.splitlines() if line.startswith("$ ")]
    assert len({line.partition(" --output ")[0] for line in runs}) == len(runs) == 2 * 3
    assert sum(f"--text_encoder {other} --image_encoder {image} --objective in_batch" in line for line in runs) == 3
    status, output, errors = dry_run("study_adapters", *words, text, other)
    assert status == 2 and f"--encoder {text}: give TEXT_ENCODER,IMAGE_ENCODER" in errors
    status, output, errors = dry_run("study_adapters", *words, f"{text},{image}", "--text_encoder", text)
    assert status == 2 and "--text_encoder: is an axis of this study; give its values with --encoder" in errors

    words = ["--modality", "multimodal", "--source", str(domain), "--text_encoder", text, "--image_encoder", image]
    status, output, errors = dry_run("study_scaling", *words, "--method", "houlsby", "--target_fraction", "1")
    assert status == 0, errors
    runs = [line for line in output.splitlines() if line.startswith("$ ")]
    sources = [line for line in runs if "--checkpoint" not in line and "--method full" in line]
    targets = [line for line in runs if "--method houlsby" in line]
    starts = {line.partition("--checkpoint ")[2].split()[0] for line in targets if "--checkpoint" in line}
    assert (len(runs), len(sources), len(targets), len(starts)) == (9, 4, 5, 4)


def test_an_axis_of_backbones_that_a_row_does_not_read_gives_one_row(domain, backbones, tmp_path):
    grid = Grid(
        (
            Axis("item_tower", ("text", "image")),
            Axis("text_encoder", (str(backbones["bert"]), str(backbones["roberta"]))),
            Axis("image_encoder", (str(backbones["vit"]),)),
            Axis("method", ("frozen",)),
        )
    )
    rows = [tuple(point.values()) for point, _ in make(None, domain, tmp_path, grid).rows]
    bert, roberta, vit = (str(backbones[kind]) for kind in ("bert", "roberta", "vit"))
    assert rows == [
        ("text", bert, "-", "frozen"),
        ("text", roberta, "-", "frozen"),
        ("image", "-", vit, "frozen"),
    ]


def test_the_ablations_of_iisan(domain, backbones, tmp_path):
    command = [sys.executable, str(REPOSITORY / "scripts" / "study_iisan.py"), "--target", str(domain), "--epochs", "1"]
    command += ["--text_encoder", str(backbones["bert"]), "--image_encoder", str(backbones["vit"])]
    command += ["--layers", "1/1", "0,1/0,1", "--max_seq_len", "6", "--title_tokens", "10", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--dry_run"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    # The base, and one run for every other value: modalities, towers, gates, embedding, layers.
    runs = [line for line in done.stdout.splitlines() if line.startswith("$ ")]
    assert len(runs) == 1 + 2 + 2 + 1 + 1 + 1
    assert sum("--text_layers 0 1 --image_layers 0 1" in line for line in runs) == 1
    assert all("--method iisan" in line for line in runs)
    assert sum("--item_tower text --objective in_batch --max_seq_len" in line for line in runs) == 1, (
        "as the other rows"
    )
    some = [
        "--side_gates",
        "true",
        "--keep_embedding",
        "true",
        "--item_tower",
        "multimodal",
        "--side_towers",
        "intra_inter",
    ]
    done = subprocess.run([*command, *some], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [row["layers"] for row in rows] == ["1/1", "0,1/0,1"]
    assert rows[0]["trainable_parameters"] < rows[1]["trainable_parameters"]


def test_a_study_over_all_that_decides_cached_states(domain, backbones, tmp_path, capsys):
    """The runs share a folder of states, whatever an axis changes, and each finds its own file."""
    dataset = shutil.copytree(domain, tmp_path / "set", ignore=shutil.ignore_patterns("images", ".transrec"))
    axes = {"side_layers": ("1", "2"), "text_pooling": ("cls", "mean"), "state_dtype": ("fp16", "fp32")}
    grid = Grid((Axis("method", ("iisan",)), *(Axis(name, values) for name, values in axes.items())))
    words = ["--target", str(dataset), "--out", str(tmp_path / "out"), "--modality", "text", "--seeds", "0", "1"]
    words += ["--text_encoder", str(backbones["bert"]), "--random_backbone", "--cached", "yes", "--epochs", "1"]
    words += ["--max_seq_len", "6", "--title_tokens", "10", "--workers", "2"]
    with pytest.raises(SystemExit) as left:
        main("", grid, words)
    assert left.value.code == 0, capsys.readouterr()
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    assert len(rows) == 8 and all(row["runs"] == "2" for row in rows if "runs" in row)
    assert len(list((dataset / ".transrec").glob("states-text-*"))) == 16


@pytest.fixture
def iisan_study(dry_run, backbones):
    encoders = ["--text_encoder", str(backbones["bert"]), "--image_encoder", str(backbones["vit"])]
    return lambda *words: dry_run("study_iisan", *encoders, *words)


def test_the_layers_of_iisan_fit_the_given_backbones(iisan_study, tmp_path):
    make_text_backbone(tmp_path / "deep", hidden_size=32, layers=6)
    status, output, _ = iisan_study("--text_encoder", str(tmp_path / "deep"))
    assert status == 0
    runs = [line for line in output.splitlines() if line.startswith("$ ")]
    layers = {
        (line.split("--text_layers ")[1].split(" --")[0], line.split("--image_layers ")[1].split(" --")[0])
        for line in runs
    }
    assert layers == {("1 3 5", "1"), ("0 1 2 3 4 5", "0 1"), ("3 4 5", "1"), ("2 5", "1")}
    twelve = {name: ",".join(map(str, choice(12))) for name, choice in LAYER_CHOICES.items()}
    assert list(twelve.values()) == ["1,3,5,7,9,11", "0,1,2,3,4,5,6,7,8,9,10,11", "6,7,8,9,10,11", "2,5,8,11"]
    # Choices that select the same layers are one row.
    assert "8 rows" in iisan_study()[1]


def test_layers_that_a_backbone_does_not_have_are_told_before_anything_starts(iisan_study):
    status, output, errors = iisan_study("--layers", "1/1", "1,3/1")
    assert status == 2 and "$ " not in output
    assert "error: --text_layers [1, 3]: the text encoder has layers 0 to 1 (run " in errors


def test_the_header_counts_what_a_fraction_leaves(domain, backbones, tmp_path, capsys):
    words = ["--target", str(domain), "--out", str(tmp_path), "--text_encoder", str(backbones["bert"])]
    grid = Grid((Axis("part", ("1", "0.5"), flags=("target.user_fraction",)), Axis("method", ("frozen",))))
    with pytest.raises(SystemExit):
        main("", grid, [*words, "--max_seq_len", "6", "--dry_run"])
    summaries = [line for line in capsys.readouterr().out.splitlines() if line.startswith("data ")]
    whole = load_dataset(domain, 6, 5)
    assert summaries == [f"data        {whole.summary}", f"data        {whole.with_user_samples(0.5, 0, 0).summary}"]
    with pytest.raises(SystemExit):
        main(
            "",
            GRID,
            [
                *words,
                "--modality",
                "multimodal",
                "--method",
                "frozen",
                "--image_encoder",
                str(backbones["vit"]),
                "--dry_run",
            ],
        )
    assert load_dataset(domain, 10, 5).summary in capsys.readouterr().out, "the length that the scripts cut at"


def result_of(hit_rate: float, popularity: float = 0.2) -> dict:
    scores = {
        part: {"HR@10": value, "NDCG@10": value / 2} for part, value in (("test", hit_rate), ("popularity", popularity))
    }
    return {
        **scores,
        "validation": {"HR@10": hit_rate + 0.1, "NDCG@10": hit_rate},
        "phase_seconds": {"feed": 0.5},
        "item_tower": "text",
        "method": "houlsby",
        **dict.fromkeys(NUMBERS, 7),
    }


def write_result(folder: Path, content) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_tables_hold_validation_metrics_names_and_who_is_below_popularity(domain, encoder, tmp_path):
    study = make(
        None,
        domain,
        tmp_path,
        Grid(
            (
                Axis(
                    "method",
                    ("full", "houlsby"),
                ),
            )
        ),
        seeds=(0, 1),
        **encoder,
    )
    for job, hit_rate in zip(study.jobs, (0.1, 0.2, 0.3, 0.5), strict=True):
        write_result(job.folder, result_of(hit_rate))
    tables = study.tables()
    full, houlsby = csv.DictReader(tables["table.csv"].splitlines())
    assert (houlsby["item_tower"], houlsby["method"], houlsby["HR@10"], houlsby["validation HR@10"]) == (
        "text",
        "houlsby",
        "0.4",
        "0.5",
    )
    assert float(houlsby["validation NDCG@10 deviation"]) == pytest.approx(statistics.stdev([0.3, 0.5]))
    assert float(full["validation HR@10"]) == pytest.approx(0.25)
    rows = {line.split("|")[1].strip(): line for line in tables["table.md"].splitlines() if line.startswith("|")}
    assert "(below)" in rows["full"] and "(below)" not in rows["houlsby"]
    assert [cell.strip() for cell in rows["popularity"].split("|")[2:5]] == ["-", "0.2000", "0.1000"]
    assert "Item tower: text." in tables["table.md"]
    assert "(below): ranks below popularity." in tables["table.md"]


def test_tables_mark_rows_and_say_how_they_are_tested(domain, encoder, tmp_path):
    grid = Grid((Axis("method", ("full", "houlsby", "lora", "frozen")),))
    study = make(None, domain, tmp_path, grid, seeds=(0, 1), **encoder)
    records = np.zeros(100, RANK)
    records["user"] = np.arange(100)
    rates = {"full": 0.5, "houlsby": 0.48, "lora": 0.1, "frozen": 0.4}
    for (point, jobs), rate in zip(study.rows, rates.values(), strict=True):
        for job in jobs:
            write_result(job.folder, result_of(rate))
            records["rank"] = np.where(np.arange(100) < 100 * rate, 1, 50)
            if point["method"] != "frozen":
                write_ranks(job.folder, "test", records)
            records["rank"] = np.where(np.arange(100) < 20, 1, 50)
            write_ranks(job.folder, "test", records, "popularity")
    tables = study.tables()
    rows = _by_first_cell(tables["table.md"])
    assert rows["full"]["HR@10"] == "**0.5000 ± 0.0000**" and rows["houlsby"]["HR@10"] == "<u>0.4800 ± 0.0000</u>"
    assert rows["lora"]["HR@10"] == "0.1000 ± 0.0000 (below)†" and rows["frozen"]["HR@10"] == "0.4000 ± 0.0000"
    assert rows["popularity"]["HR@10"] == "0.2000†"
    assert "Seeds per row: 2." in tables["table.md"] and "are kept (frozen)." in tables["table.md"]
    full, houlsby, lora, frozen = csv.DictReader(tables["table.csv"].splitlines())
    assert full["HR@10 p"] == frozen["HR@10 p"] == frozen["NDCG@10 p"] == ""
    assert float(houlsby["HR@10 p"]) == 0.5 and float(lora["NDCG@10 p"]) < 0.05
    assert (
        tables["table.tex"].startswith("% Seeds per row: 2.") and r"\textbf{0.5000 $\pm$ 0.0000}" in tables["table.tex"]
    )


def _by_first_cell(table: str) -> dict[str, dict[str, str]]:
    """Return the rows of a Markdown table within a text, by their first cell; each row is a dict by column."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}


@pytest.mark.parametrize(
    "damage,why",
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "holds no result"),
        ({"test": {"HR@10": float("nan"), "NDCG@10": 0.1}}, "'test' must be numbers by name"),
        ({"test": {"HR@10": "0.3", "NDCG@10": 0.1}}, "'test' must be numbers by name"),
        ({"test": {"HR@10": 0.3}}, "'test' lacks HR@10 or NDCG@10"),
        ({"validation": None}, "'validation' must be numbers by name"),
        ({"wall_seconds": float("inf")}, "'wall_seconds' must be a number"),
        ({"trainable_parameters": None}, "'trainable_parameters' must be a number"),
        ({"total_parameters": True}, "'total_parameters' must be a number"),
    ],
    ids=str,
)
def test_a_damaged_result_is_named_and_not_counted(domain, backbones, encoder, tmp_path, capsys, damage, why):
    grid = Grid((Axis("method", ("frozen",)),))
    study = make(None, domain, tmp_path, grid, seeds=(0, 1), **encoder)
    for job in study.jobs:
        write_result(job.folder, result_of(0.3))
    assert study.tables()["table.csv"].splitlines()[1].split(",")[3] == "2"
    spoilt = study.jobs[1].folder
    write_result(spoilt, damage if isinstance(damage, str) else result_of(0.9) | damage)
    (row,) = csv.DictReader(study.tables()["table.csv"].splitlines())
    assert (row["seeds"], row["HR@10"]) == ("1", "0.3") and "nan" not in study.tables()["table.md"].lower()
    with pytest.raises(TransrecError, match=rf"result\.json: damaged, {re.escape(why)}; --resume .* writes it again"):
        read_result(spoilt)
    words = ["--target", str(domain), "--out", str(tmp_path / "out"), "--text_encoder", str(backbones["bert"])]
    with pytest.raises(SystemExit):
        main("", grid, [*words, "--max_seq_len", "6", "--seeds", "0", "1", "--dry_run"])
    output = capsys.readouterr().out
    assert "2 runs of which 1 are done" in output and f"again       {spoilt}/result.json: damaged, {why}\n" in output


def test_a_run_that_another_process_runs_is_waited_for(domain, encoder, tmp_path):
    (job,) = make(None, domain, tmp_path, Grid((Axis("method", ("frozen",)),)), **encoder).jobs
    workers = Workers(1, tmp_path)
    with closing(Run(job.folder)):
        assert workers._start([job]) == ([job], 0)
    write_result(job.folder, result_of(0.3))
    assert workers._start([job]) == ([], 1)
    assert not workers.running and not workers.failed


def test_two_processes_share_a_study(domain, backbones, tmp_path, capsys):
    """Each run is run once, a run with a damaged result is repeated, and both processes end well."""
    words = ["--target", str(domain), "--out", str(tmp_path / "out"), "--text_encoder", str(backbones["bert"])]
    words += ["--epochs", "1", "--embedding_dim", "16", "--max_seq_len", "6", "--method", "full", "--seeds"]
    with pytest.raises(SystemExit):
        main("", Grid((Axis("method", ("full",)),)), [*words, "0", "--dry_run"])
    damaged = Path(capsys.readouterr().out.split()[-1])
    write_result(damaged, {"test": {"HR@10": float("nan")}})
    command = [sys.executable, str(REPOSITORY / "scripts" / "study_insertion.py"), *words, "0", "1"]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    started = [line for output in outputs for line in output.splitlines() if line.startswith("$ ")]
    assert len(started) == len(set(started)) == 2
    assert any(f"again       {damaged}/result.json: damaged, 'test' must be numbers" in output for output in outputs)
    scores = [json.loads(path.read_text())["test"]["HR@10"] for path in (tmp_path / "out").glob("runs/*/result.json")]
    assert len(scores) == 2 and all(f" {mean_and_spread(scores)} " in output for output in outputs), "both print all"


def test_a_study_goes_on_where_it_was_stopped(domain, backbones, tmp_path):
    """A study that is stopped during a run and started again ends with the numbers of an uninterrupted study."""
    sizes = ["--embedding_dim", "16", "--max_seq_len", "6", "--title_tokens", "10", "--batch_size", "8"]
    words = ["--source", domain, "--target", domain, "--encoder", backbones["bert"], "--seeds", "0", "1", *sizes]
    words += ["--objective", "in_batch", "--method", "frozen", "houlsby", "--houlsby.epochs", "6", "--epochs", "2"]
    command = [sys.executable, str(REPOSITORY / "scripts" / "study_adapters.py"), *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def start(out: Path, workers: int) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, "--out", str(out), "--workers", str(workers)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    broken, whole = tmp_path / "broken", tmp_path / "whole"
    process = start(broken, 1)
    deadline = time.monotonic() + 120
    while not any(broken.glob("runs/*houlsby*/metrics.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "the same command continues" in output
    finished = {path.parent.name: path.stat().st_mtime_ns for path in broken.glob("runs/*/result.json")}
    assert len(finished) == 3 and "houlsby" not in " ".join(finished)
    first = list(csv.DictReader((broken / "table.csv").open()))
    assert {row["stage"] for row in first} == {"source", "target"}, "a table of what is done"

    # A run that cannot start because a file is in the place of its folder.
    second = study_folder(broken, "houlsby-seed1", command)
    second.parent.mkdir(exist_ok=True)
    second.write_text("in the way")
    output, _ = (process := start(broken, 2)).communicate(timeout=120)
    assert process.returncode == 1 and "1 of 5 runs failed" in output and "failed      " in output
    second.unlink()
    output, _ = (process := start(broken, 2)).communicate(timeout=120)
    assert process.returncode == 0, output
    assert "resumed     epoch" in next((broken / "logs").glob("*houlsby-seed0*")).read_text()
    for name, time_of in finished.items():
        assert (broken / "runs" / name / "result.json").stat().st_mtime_ns == time_of, "nothing done is repeated"

    output, _ = (process := start(whole, 2)).communicate(timeout=120)
    assert process.returncode == 0, output
    results = {}
    for out in (broken, whole):
        paths = out.glob("runs/*/result.json")
        results[out] = {path.parent.name: json.loads(path.read_text()) for path in paths}
    assert results[broken].keys() == results[whole].keys() and len(results[whole]) == 5
    for name, result in results[whole].items():
        for key in ("test", "validation", "best_epoch", "trainable_parameters"):
            assert results[broken][name][key] == result[key], name

    rows = list(csv.DictReader((whole / "table.csv").open()))
    row = next(row for row in rows if row["method"] == "houlsby")
    scores = [result["test"]["HR@10"] for name, result in results[whole].items() if "houlsby" in name]
    assert float(row["HR@10"]) == statistics.mean(scores) and int(row["seeds"]) == 2
    assert float(row["HR@10 deviation"]) == statistics.stdev(scores)
    assert mean_and_spread(scores) in (whole / "table.md").read_text()
    assert "houlsby" in (whole / "table.tex").read_text() and mean_and_spread(scores) in output


def study_folder(out: Path, name: str, command: list[str]) -> Path:
    """Return the run folder that the study plans for the run of that name."""
    output = subprocess.run([*command, "--out", str(out), "--dry_run"], capture_output=True, text=True).stdout
    line = next(line for line in output.splitlines() if f"{name}-" in line)
    return Path(line.split()[-1])


def test_tables_for_latex_and_other_programs():
    assert latex(["method", "HR@10"], [["a_b & c", "0.1 ± 0.2"]]).splitlines() == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"method & HR@10 \\",
        r"\midrule",
        r"a\_b \& c & 0.1 $\pm$ 0.2 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert comma_separated([{"a": 1, "b": 2.5}, {"a": "x, y", "c": 3}]) == 'a,b,c\n1,2.5,\n"x, y",,3\n'
    assert mean_and_spread([0.25]) == "0.2500"
    # The sample standard deviation of 1, 2, 3 is 1.
    assert mean_and_spread([1, 2, 3]) == "2.0000 ± 1.0000"


def test_results_are_a_frame_of_documented_columns(tmp_path):
    for name, more in (("runs/b", {"seed": 1}), ("runs/a", {"seed": 0, "name": "LoRA \ud800", "method": "lora"})):
        write_result(tmp_path / name, result_of(0.25) | more)
    untested = {key: value for key, value in result_of(0.5).items() if key not in ("test", "popularity")}
    write_result(tmp_path / "alone", untested)
    (tmp_path / "runs" / "unfinished").mkdir()
    table = transrec.results(tmp_path, tmp_path / "alone", tmp_path / "runs" / "a")
    assert table["run"].tolist() == [str(tmp_path / name) for name in ("runs/a", "runs/b", "alone")]
    assert table["method"].tolist()[0] == "lora" and table["seed"].tolist()[:2] == [0, 1]
    assert table["seed"].isna().tolist() == table["HR@10"].isna().tolist() == [False, False, True]
    assert table["validation HR@10"].tolist()[0] == result_of(0.25)["validation"]["HR@10"]
    kinds = {"seed": "Int64", "HR@10": "float64", "trainable_parameters": "int64", "wall_seconds": "float64"}
    assert {name: str(table[name].dtype) for name in kinds} == kinds
    with pytest.raises(TransrecError, match="holds no finished run; name a run's folder, or a study's --out"):
        transrec.results(tmp_path / "runs" / "unfinished")
    with pytest.raises(TransrecError, match="holds no finished run"):
        transrec.results(tmp_path / "nowhere")
