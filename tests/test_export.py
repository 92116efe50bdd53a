"""Exported backbones, and the documented example of a new method."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, run
from examples import EXAMPLES, plugin_flags, registered
from transformers import AutoModel, AutoTokenizer

from transrec.data.images.build import build_store
from transrec.errors import TransrecError
from transrec.export import export_backbone
from transrec.finished import load_run
from transrec.modalities.text import TextTower
from transrec.models.backbone import POOLINGS, declare_pooling, declared_pooling, load_tokenizer
from transrec.reports.tables import read_result
from transrec.training.run import read_options


@pytest.mark.parametrize("name", ["full", "lora", "bitfit", "layernorm"])
def test_an_exported_backbone_gives_the_same_item_embeddings(flags, backbones, tmp_path, name):
    rates = ["--lr", "1e-2"] if name == "full" else ["--adapter_lr", "1e-2"]
    run([*flags, *rates, "--output", str(tmp_path / "run")], name)
    recommender = load_run(tmp_path / "run")
    export_backbone(recommender.item_encoder, tmp_path / "out", load_tokenizer(backbones["bert"]))

    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")(["red lamp", "golden tent"], return_tensors="pt")
    plain = TextTower(AutoModel.from_pretrained(tmp_path / "out").eval(), 16).eval()
    plain.projection.load_state_dict(recommender.item_encoder.projection.state_dict())
    inputs = tokens["input_ids"], tokens["attention_mask"]
    with torch.no_grad():
        exported, ours = plain(*inputs), recommender.item_encoder(*inputs)
        before = TextTower(AutoModel.from_pretrained(backbones["bert"]).eval(), 16).eval()
        before.projection.load_state_dict(recommender.item_encoder.projection.state_dict())
        assert (before(*inputs) - ours).abs().max() > 1e-3, "training changed nothing, so nothing was shown"
    # Merging adds B A to W once instead of in every forward pass, which differs by rounding.
    torch.testing.assert_close(exported, ours, atol=1e-5, rtol=0)
    with pytest.raises(TransrecError, match="exists already"):
        export_backbone(recommender.item_encoder, tmp_path / "out")


def test_an_exported_backbone_is_pooled_as_before(flags, tmp_path):
    run([*flags, "--text_pooling", "mean", "--output", str(tmp_path / "run")], "full")
    tower = load_run(tmp_path / "run").item_encoder
    export_backbone(tower, tmp_path / "out")
    assert declared_pooling(tmp_path / "out") == tower.pooling == "mean"


@pytest.mark.parametrize("chosen", POOLINGS)
def test_a_declared_pooling_is_read_again(tmp_path, chosen):
    declare_pooling(tmp_path, chosen, 32)
    (tmp_path / "config.json").write_text("{}")
    assert declared_pooling(tmp_path) == chosen


def test_functions_take_text_and_paths_and_name_what_was_given(flags, domain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run([*flags, "--output", "run", "--epochs", "1"])
    for kind in (str, Path):
        assert read_options(kind("run"))["output"] == str(tmp_path / "run")
        assert read_result(kind("run"))["method"] == "full"
        export_backbone(load_run(kind("run")).item_encoder, kind(f"out-{kind.__name__}"))
        build_store(domain / "items.tsv", str(domain / "images"), kind(f"{kind.__name__}.lmdb"), 8, "raw")
        for wrong, problem in (
            (read_options, "holds no run (cannot read options.json)"),
            (load_run, "holds no run (cannot read options.json)"),
            (read_result, "has no result.json"),
        ):
            for given in ("nowhere", "run/options.json"):
                with pytest.raises(TransrecError) as error:
                    wrong(kind(given))
                assert str(error.value).startswith(f"{given}: {problem}")
        with pytest.raises(TransrecError, match=r"^run: exists already"):
            export_backbone(load_run("run").item_encoder, kind("run"))
    (tmp_path / "run" / "checkpoints" / "best.safetensors").unlink()
    message = r"^run: holds no checkpoints/best.safetensors: no epoch ended, or it was removed"
    with pytest.raises(TransrecError, match=message):
        load_run("run")


def test_what_cannot_be_merged_is_refused(flags, tmp_path):
    run([*flags, "--output", str(tmp_path / "run"), "--epochs", "1"], "houlsby")
    with pytest.raises(TransrecError, match=r"attention\.output\.dropout holds a SerialAdapter"):
        export_backbone(load_run(tmp_path / "run").item_encoder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tower", ["text", "id", "multimodal"])
def test_a_run_without_a_backbone_of_its_own(flags, backbones, tmp_path, monkeypatch, capsys, tower):
    """A run without a backbone of its own reports what can be exported instead, if anything."""
    flags = [*flags, "--image_encoder", str(backbones["vit"]), "--item_tower", tower, "--epochs", "1"]
    cached = [] if tower == "id" else ["--cached", "--state_cache", str(tmp_path / "states")]
    run([*flags, *cached, "--output", str(tmp_path / "run")], "full" if tower == "id" else "iisan")
    monkeypatch.setattr(sys, "argv", ["export", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(REPOSITORY / "scripts" / "export_backbone.py"), run_name="__main__")
    message = capsys.readouterr().err
    assert left.value.code == 2 and message.count("\n") == 1 and not (tmp_path / "out").exists()
    if tower == "id":
        assert "no backbone reads its items; there is none to export" in message
        return
    assert "trained no backbone, it read hidden states computed before" in message
    assert f"text: {backbones['bert']}" in message
    assert (f"image: {backbones['vit']}" in message) == (tower == "multimodal")


@pytest.fixture
def ia3():
    """Register the method of docs/adding/ia3.py."""
    with registered(["ia3"]):
        yield "ia3"


def test_the_documented_method_works(ia3, flags, tmp_path):
    """Loaded from its file, it starts as the identity, trains three vectors per block, is saved and loaded."""
    run([*flags, "--output", str(tmp_path / "source"), "--epochs", "1"])
    start = ["--checkpoint", str(tmp_path / "source"), "--output", str(tmp_path / "run")]
    result = run([*flags, *start, "--adapter_lr", "0.1", *plugin_flags(ia3)], ia3)
    # Two BERT blocks of width 32 and inner width 64, two SASRec blocks of width 16 and inner width 64.
    assert result["trainable_parameters"] == 2 * (32 + 32 + 64) + 2 * (16 + 16 + 64)
    loaded, source = load_run(tmp_path / "run", [EXAMPLES[ia3]]), load_run(tmp_path / "source")
    inputs = torch.tensor([[2, 60, 70, 3]]), torch.ones(1, 4, dtype=torch.long)
    with torch.no_grad():
        assert not torch.equal(loaded.item_encoder(*inputs), source.item_encoder(*inputs))
        for name, parameter in loaded.named_parameters():
            if name.endswith(".scale"):
                parameter.fill_(1)
        assert torch.equal(loaded.item_encoder(*inputs), source.item_encoder(*inputs))
