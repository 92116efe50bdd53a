"""Backbones whose weights are already quantised: refused clearly, or run by the library for them."""

import json
import os
import shutil
import sys
from types import ModuleType

import pytest
import torch
from conftest import run
from transformers import AutoModel, AutoModelForCausalLM

from transrec.data.demo import STYLES, TOPICS, make_text_backbone
from transrec.errors import TransrecError
from transrec.models import quantised
from transrec.models.backbone import load_backbone, load_config
from transrec.models.quantised import quantisation

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}


@pytest.fixture
def quantised_folder(backbones, tmp_path):
    """Return a function that makes a backbone whose config.json declares a quantisation."""

    def write(quantization_config):
        folder = tmp_path / "quantised"
        shutil.copytree(backbones["llama"], folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization_config}))
        return folder

    return write


@pytest.mark.parametrize(
    ("kind", "needs"),
    [
        (GPTQ, "pip install gptqmodel optimum"),
        ({"quant_method": "awq", "bits": 4}, "pip install gptqmodel"),
        ({"load_in_4bit": True}, "pip install bitsandbytes"),
    ],
)
def test_a_library_that_is_not_there_is_named(quantised_folder, kind, needs, monkeypatch):
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    with pytest.raises(TransrecError, match=needs):
        load_backbone(quantised_folder(kind))


@pytest.mark.parametrize("kind", [{"quant_method": "torchao"}, {"quant_method": ["gptq"]}, {}])
def test_other_quantisations_are_refused(quantised_folder, kind):
    with pytest.raises(TransrecError, match=r"quantised by .*only gptq, awq, bitsandbytes are run"):
        folder = quantised_folder(kind)
        quantisation(load_config(folder), str(folder))


def test_a_library_that_is_there_is_asked(quantised_folder, monkeypatch):
    """transformers receives the weights as they are, and the folder's own code does not run."""
    asked = {}

    def from_pretrained(place, **options):
        asked.update(options)
        raise TransrecError("reached")

    monkeypatch.setattr(quantised, "find_spec", lambda name: ModuleType(name))
    monkeypatch.setattr(AutoModel, "from_pretrained", from_pretrained)
    with pytest.raises(TransrecError, match="reached"):
        load_backbone(quantised_folder(GPTQ), dtype=torch.bfloat16)
    assert asked["dtype"] == "auto" and asked["trust_remote_code"] is False
    assert asked["config"].quantization_config == GPTQ


@pytest.mark.parametrize(
    ("method", "more", "expected"),
    [
        ("lora", ["--insert", "item"], "--method lora changes the encoder"),
        ("full", [], "--method full changes the encoder"),
        ("frozen", ["--encoder_dtype", "bf16"], "leave out --encoder_dtype bf16"),
        ("frozen", ["--random_backbone"], "cannot be drawn at random (--random_backbone)"),
        ("frozen", ["--backbone_dropout", "on"], "leave out --backbone_dropout on"),
    ],
)
def test_quantised_weights_stay_as_they_are(quantised_folder, command, monkeypatch, method, more, expected):
    monkeypatch.setattr(quantised, "find_spec", lambda name: ModuleType(name))
    status, line = command("--text_encoder", str(quantised_folder(GPTQ)), *more, method=method)
    assert status == 2 and "its weights are quantised" in line and expected in line


def check_runs(folder, flags, tmp_path):
    """Check that `frozen` over a backbone has the same result with stored states as with states of every step."""
    results = []
    for cached in ("yes", "no"):
        given = ["--text_encoder", str(folder), "--cached", cached, "--state_cache", str(tmp_path)]
        run([*flags, *given, "--output", str(tmp_path / cached)], "frozen")
        results.append(json.loads((tmp_path / cached / "result.json").read_text()))
    assert results[0]["test"] == pytest.approx(results[1]["test"])
    assert results[0]["total_parameters"] == results[1]["total_parameters"]


def test_by_bitsandbytes(flags, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    pytest.importorskip("accelerate", reason="needs accelerate, of the extra large")
    from transformers import BitsAndBytesConfig

    folder = tmp_path / "4bit"
    make_text_backbone(folder, hidden_size=128, kind="llama")
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    AutoModel.from_pretrained(folder, quantization_config=settings).save_pretrained(folder)
    backbone = load_backbone(folder)
    assert torch.uint8 in {parameter.dtype for parameter in backbone.parameters()}
    check_runs(folder, flags, tmp_path)
    assert "bitsandbytes" in sys.modules


@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_by_gptqmodel(kind, flags, tmp_path, monkeypatch):
    """Weights of 4 bits as gptqmodel writes them: the states come close to those of the weights that it was given."""
    # With fewer than three CPUs, gptqmodel 7.7 stops at a pool of threads larger than the one that it is part of.
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    # It writes a log into the current folder.
    monkeypatch.chdir(tmp_path)
    gptqmodel = pytest.importorskip("gptqmodel", reason="needs gptqmodel")
    pytest.importorskip("optimum", reason="needs optimum")
    plain, folder = tmp_path / "plain", tmp_path / kind
    make_text_backbone(plain, hidden_size=128, kind="llama")
    AutoModelForCausalLM.from_pretrained(plain).save_pretrained(plain)
    configs = {"gptq": gptqmodel.QuantizeConfig, "awq": gptqmodel.quantization.config.AWQConfig}
    config = configs[kind](bits=4, group_size=64, device="cpu")
    model = gptqmodel.GPTQModel.load(str(plain), config)
    # Twice, because texts of fewer than ten tokens are left out.
    texts = [2 * f"{style} {topic} " for style in STYLES.values() for topic in TOPICS.values()]
    model.quantize(texts, batch_size=8)
    model.save(str(folder))
    check_runs(folder, flags, tmp_path)
    words = torch.arange(3, 63).view(10, 6)
    with torch.no_grad():
        states = [load_backbone(place).eval()(input_ids=words).last_hidden_state for place in (plain, folder)]
    assert states[0].dtype == states[1].dtype == torch.float32
    assert torch.cosine_similarity(*states, dim=-1).mean() > 0.9
