"""Backbones whose weights are already quantised: refused clearly, or run by the library for them."""

import json
import shutil
import sys
from types import ModuleType

import pytest
import torch
from conftest import run
from transformers import AutoModel

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
    ],
)
def test_quantised_weights_stay_as_they_are(quantised_folder, command, monkeypatch, method, more, expected):
    monkeypatch.setattr(quantised, "find_spec", lambda name: ModuleType(name))
    status, line = command("--text_encoder", str(quantised_folder(GPTQ)), *more, method=method)
    assert status == 2 and "its weights are quantised" in line and expected in line


def test_by_bitsandbytes(backbones, flags, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    pytest.importorskip("accelerate", reason="needs accelerate, of the extra large")
    from transformers import BitsAndBytesConfig

    folder = tmp_path / "4bit"
    shutil.copytree(backbones["llama"], folder)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    AutoModel.from_pretrained(folder, quantization_config=settings).save_pretrained(folder)
    backbone = load_backbone(folder)
    assert torch.uint8 in {parameter.dtype for parameter in backbone.parameters()}
    results = []
    for cached in ("yes", "no"):
        out = tmp_path / cached
        given = [
            "--text_encoder",
            str(folder),
            "--cached",
            cached,
            "--state_cache",
            str(tmp_path),
            "--output",
            str(out),
        ]
        run([*flags, *given], "frozen")
        results.append(json.loads((out / "result.json").read_text())["test"])
    assert results[0] == pytest.approx(results[1]) and "bitsandbytes" in sys.modules
