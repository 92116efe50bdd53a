"""The examples of docs/adding: each works from its file alone, and together with the others."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import FEW_STEPS, REPOSITORY, run
from test_training import assert_same_run, run_to_the_first_save
from torch.nn import functional as F
from transformers import ASTConfig, AutoModel

from transrec import plugins
from transrec.data.batches import Batch, TrainingBatches
from transrec.data.dataset import load_dataset
from transrec.errors import TransrecError
from transrec.finished import load_run
from transrec.models.objectives import OBJECTIVES
from transrec.models.user_encoders import USER_ENCODERS
from transrec.settings import parse

FILES = sorted((REPOSITORY / "docs" / "adding").glob("*.py"))
PLUGINS = [word for path in FILES for word in ("--plugin", str(path))]
ALL = [
    *PLUGINS,
    *("--objective", "margin", "--negatives", "3", "--margin", "0.5"),
    *("--user_encoder", "causal_convolution", "--kernel", "2", "--dilations", "1", "2"),
    *("--metrics", "mrr", "rbp", "top_share", "--rbp_persistence", "0.5", "--tracker", "csv", "--csv_separator", ";"),
]


@pytest.fixture(autouse=True)
def loaded():
    """The example plugins, unloaded after the test."""
    plugins.load_plugins(FILES)
    yield
    for path in FILES:
        plugins.unload(path)


@pytest.fixture
def words(flags):
    return [*flags, *FEW_STEPS, *ALL, "--lr", "1e-2"]


def test_all_of_them_in_one_run(words, tmp_path):
    result = run([*words, "--output", str(tmp_path)], "frozen")
    lists = [f"{name}@{k}" for k in (5, 10, 20) for name in ("HR", "NDCG", "RBP", "TopShare")]
    for part in ("validation", "test", "popularity"):
        assert [*result[part]] == [*lists, "MRR"]
        assert all(0 <= result[part][f"RBP@{k}"] <= result[part][f"HR@{k}"] / 2 for k in (5, 10, 20))
        assert 0 < result[part]["TopShare@20"] <= result[part]["TopShare@5"] <= 1
    rows = [*csv.DictReader((tmp_path / "metrics.csv").open(), delimiter=";")]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [float(row["validation TopShare@10"]) for row in rows] == [line["validation TopShare@10"] for line in lines]
    with pytest.raises(TransrecError, match="the run needs the plugin"):
        load_run(tmp_path)
    assert type(load_run(tmp_path, FILES).user_encoder).__name__ == "CausalConvolution"


def test_a_run_of_them_that_was_stopped_resumes_to_the_same_numbers(words, tmp_path, monkeypatch):
    run([*words, "--save_steps", "2", "--output", str(tmp_path / "unbroken")], "frozen")

    run_to_the_first_save(monkeypatch, [*words, "--save_steps", "2", "--output", str(tmp_path / "resumed")], "frozen")
    run(["--resume", str(tmp_path / "resumed"), *PLUGINS], "frozen")
    assert_same_run(tmp_path / "unbroken", tmp_path / "resumed")
    assert len((tmp_path / "resumed" / "metrics.csv").read_text().splitlines()) == 3


def test_epochs_of_a_method_that_reads_them_stay(flags, tmp_path):
    given = [
        "--plugin",
        str(REPOSITORY / "docs" / "adding" / "adalora.py"),
        "--keep_state",
        "--epochs",
        "1",
        "--output",
        str(tmp_path),
    ]
    run([*flags, *FEW_STEPS, *given], "adalora")
    with pytest.raises(TransrecError, match=r"cannot be resumed with --epochs 3 \(was 1\)"):
        run(["--resume", str(tmp_path), *given[:2], "--epochs", "3"], "adalora")


@pytest.mark.long
def test_two_processes_give_the_metrics_of_one(words, tmp_path):
    # Without dropout, whose draws depend on how users are divided among processes.
    words = [*words, "--backbone_dropout", "off", "--epochs", "1"]
    alone = run([*words, "--output", str(tmp_path / "one")], "frozen")
    script = str(REPOSITORY / "Downstream" / "Text" / "script" / "frozen.py")
    command = [sys.executable, script, *words, "--nproc", "2", "--output", str(tmp_path / "two")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    together = json.loads((tmp_path / "two" / "result.json").read_text())
    assert together["popularity"] == alone["popularity"], "lists and ranks of one model are the same"
    assert together["test"] == pytest.approx(alone["test"], abs=0.02)


def test_margin_by_its_formula():
    torch.manual_seed(0)
    embeddings, sequences = torch.randn(6, 4), torch.tensor([[0, 1, 2, 3], [1, 4, 5, 6]])
    negatives = torch.tensor([[[0, 0], [4, 5], [6, 4]], [[2, 3], [3, 2], [2, 2]]])
    batch = Batch(torch.arange(1, 7), sequences, negatives, torch.zeros(6), predictions=5, item_count=6)
    loss = OBJECTIVES.get("margin")(negatives=2, margin=0.5)(embeddings, batch, lambda items, mask: items)
    expected = 0.0
    for user, place in batch.mask.nonzero().tolist():
        vector, target = (embeddings[sequences[user, place + step] - 1] for step in (0, 1))
        for negative in negatives[user, place]:
            expected += max(0.0, float(0.5 - vector @ target + vector @ embeddings[negative - 1])) / 2
    assert loss.item() == pytest.approx(expected) and expected > 0


def test_several_negatives_of_a_position(domain):
    split = load_dataset(domain, 6, 5).split
    (batch,) = TrainingBatches(split, 20, negatives=3, last_only=False, seed=0).pieces_of(1, 0)
    assert batch.negatives.shape == (20, 6, 3) and batch.item_count == split.item_count
    assert torch.equal(batch.negatives > 0, batch.mask.unsqueeze(-1).expand(-1, -1, 3))
    assert not (batch.negatives.flatten(1).unsqueeze(2) == batch.sequences.unsqueeze(1))[
        batch.negatives.flatten(1) > 0
    ].any()
    assert len(set(batch.negatives[batch.mask].flatten().tolist())) > 20, "each is drawn by itself"


def test_causal_convolution_is_causal_and_reads_no_padding():
    torch.manual_seed(0)
    encoder = USER_ENCODERS.get("causal_convolution")(8, 5, kernel=2, dilations=[1, 2]).eval()
    items = torch.randn(3, 5, 8)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]).bool()
    vectors = encoder(items, mask)
    assert torch.isfinite(vectors).all()
    later = items.clone()
    later[:, 3:] = 9.0
    torch.testing.assert_close(encoder(later, mask)[:2, :3][mask[:2, :3]], vectors[:2, :3][mask[:2, :3]])
    noise = torch.where(mask.unsqueeze(-1), items, torch.full_like(items, 7.0))
    torch.testing.assert_close(encoder(noise, mask)[mask], vectors[mask])
    short = encoder(F.pad(items[:1, 2:], (0, 0, 0, 0)), torch.ones(1, 3).bool())
    torch.testing.assert_close(vectors[0, 2:], short[0])


def test_methods_that_insert_into_blocks_say_so(words, tmp_path):
    message = "--method houlsby --insert all: the user encoder CausalConvolution has no transformer blocks to insert"
    with pytest.raises(TransrecError, match=message):
        run([*words, "--output", str(tmp_path)], "houlsby")
    result = run([*words, "--output", str(tmp_path), "--insert", "item", "--epochs", "1"], "houlsby")
    assert result["trainable_parameters"] > 0


def test_a_base_of_another_user_encoder_is_told_apart(words, flags, tmp_path):
    run([*words, "--output", str(tmp_path / "base"), "--epochs", "1"], "full")
    with pytest.raises(
        TransrecError, match="was trained with --user_encoder causal_convolution, this run has user_encoder sasrec"
    ):
        run([*flags, "--checkpoint", str(tmp_path / "base"), "--output", str(tmp_path / "run")], "houlsby")
    more = ["--checkpoint", str(tmp_path / "base"), "--insert", "item", "--epochs", "1"]
    run([*words, *more, "--output", str(tmp_path / "run")], "houlsby")


@pytest.fixture
def audio(domain, tmp_path) -> list[str]:
    """Flags that name a tiny audio backbone and spectrograms of the small dataset's items."""
    config = ASTConfig(
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
        **{"max_length": 16, "num_mel_bins": 16, "patch_size": 8, "frequency_stride": 8, "time_stride": 8},
    )
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(tmp_path / "ast")
    shutil.copy(domain / "ids.txt", tmp_path / "ids.txt")
    items = len((tmp_path / "ids.txt").read_text().split())
    np.save(tmp_path / "sounds.npy", np.random.default_rng(0).normal(size=(items, 16, 16)).astype(np.float32))
    return ["--audio_encoder", str(tmp_path / "ast"), "--spectrograms", str(tmp_path / "sounds.npy")]


@pytest.mark.parametrize(
    "method,modality,more",
    [
        ("houlsby", ["audio"], ["--insert", "all"]),
        ("frozen", ["audio"], ["--cached", "yes"]),
        ("iisan", ["text", "audio"], ["--cached", "yes", "--side_size", "8"]),
    ],
)
def test_a_modality_with_a_backbone_and_flags_of_its_own(flags, audio, tmp_path, method, modality, more):
    given = [*flags, *FEW_STEPS, *PLUGINS, *audio, "--modalities", *modality, *more, "--epochs", "1", "--keep_state"]
    given += ["--state_cache", str(tmp_path / "states"), "--backbone_dropout", "off"]
    result = run([*given, "--output", str(tmp_path / "run")], method)
    assert result["item_tower"] == "+".join(modality) and result["name"].endswith("sounds")
    stored = json.loads((tmp_path / "run" / "options.json").read_text())
    assert stored["audio_encoder"] == str(tmp_path / "ast")
    assert stored["spectrograms"] in stored["files"]
    # Neither the use of cached states nor the place where a run is loaded changes a number.
    uncached = [*given, "--cached", "no", "--output", str(tmp_path / "uncached")]
    if "--cached" in more:
        assert run(uncached, method)["test"] == pytest.approx(result["test"], abs=1e-4)
    loaded = load_run(tmp_path / "run", FILES)
    assert {type(tower).__name__ for tower in loaded.item_encoder.towers} >= (
        {"AudioTower"} if method != "iisan" else {"StoredTower"}
    )
    run(["--resume", str(tmp_path / "run"), *PLUGINS, "--epochs", "2"], method)


def test_mistakes_of_a_modality_from_outside(flags, audio, backbones, tmp_path):
    def error_of(*words: str) -> str:
        with pytest.raises(TransrecError) as caught:
            run([*flags, *PLUGINS, *audio, *words, "--output", str(tmp_path / "run")], "frozen")
        return str(caught.value)

    with pytest.raises(TransrecError, match="--audio_encoder: no flag of modality text, but of audio"):
        parse([*flags, *PLUGINS, *audio], "frozen", {})
    alone = ("--modalities", "audio")
    assert "a BertModel reads text, not audio" in error_of(*alone, "--audio_encoder", str(backbones["bert"]))
    np.save(tmp_path / "sounds.npy", np.zeros((150, 8, 16), np.float32))
    assert "sounds.npy: is of [8, 16] frames and mels, and " in error_of(*alone)
    (tmp_path / "sounds.npy").unlink()
    assert "sounds.npy: cannot read the vectors" in error_of(*alone)


@pytest.mark.parametrize(
    "words,expected",
    [
        (["--objective", "margin", "--margin", "-1"], "--margin -1.0: must be at least 0"),
        (["--margin", "0.5"], "--margin: no flag of objective bce, but of margin"),
        (["--csv_separator", ";"], "--csv_separator: no flag of tracker none, but of csv"),
        (
            ["--user_encoder", "causal_convolution", "--heads", "2"],
            "--heads: no flag of user encoder causal_",
        ),
    ],
)
def test_mistakes(flags, words, expected):
    with pytest.raises(TransrecError) as caught:
        parse([*flags, *PLUGINS, *words], "full", {})
    assert str(caught.value).startswith(expected)
