"""Exported runs: reading them by load_run, by torch alone, and by peft."""

import json
import runpy
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import BOTH, FEW_STEPS, REPOSITORY, encoder_flags, run, run_flags
from transformers import AutoModel

import transrec
from transrec.data.vectors import VectorFile
from transrec.errors import TransrecError
from transrec.export import export_user_encoder
from transrec.models.user_encoders import UserEncoder
from transrec.reports import release


@pytest.fixture(scope="module")
def flags(domain, backbones) -> list[str]:
    return [*run_flags(domain, backbones), *FEW_STEPS, "--epochs", "1", "--lr", "1e-2"]


@pytest.fixture(scope="module")
def source(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "run"
    run([*flags, "--output", str(folder)], "full")
    return folder


@pytest.fixture
def exported(flags, tmp_path, monkeypatch, capfd):
    """Return a function that trains a method and exports the run; it returns the run and the exported folder."""

    def call(method: str, *more: str):
        run([*flags, *more, "--output", str(tmp_path / "run")], method)
        words = ["export_model.py", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", words)
        runpy.run_path(str(REPOSITORY / "scripts" / "export_model.py"), run_name="__main__")
        assert "Traceback" not in capfd.readouterr().err
        return transrec.load_run(tmp_path / "run"), tmp_path / "out"

    return call


@pytest.fixture
def no_user_encoder(monkeypatch):
    """Skip torch.export, which takes seconds, in tests that are not about it."""
    monkeypatch.setattr(release, "export_user_encoder", lambda *of: None)


def moved(folder, to):
    """Move the export and return its new path; it must work from any path."""
    folder.rename(to)
    return to


@pytest.mark.parametrize(
    "method,kind,more",
    [("houlsby", BOTH, []), ("iisan", BOTH, ["--cached"])],
    ids=["houlsby", "iisan, cached"],
)
@pytest.mark.usefixtures("no_user_encoder")
def test_load_run_reads_it_back(exported, backbones, domain, tmp_path, method, kind, more):
    before, out = exported(method, *encoder_flags(kind, backbones), *more)
    out = moved(out, tmp_path / "elsewhere")
    options = (out / "options.json").read_text()
    # No absolute path is left, of the dataset or of anything else.
    assert str(tmp_path) not in options + (out / "README.md").read_text() and str(domain) not in options
    after = transrec.load_run(out, dataset=domain)
    assert after.evaluate() == before.evaluate()
    np.testing.assert_array_equal(after.embed(after.ids), before.embed(before.ids))
    assert after.recommend(before.ids[:3], 5).ids == before.recommend(before.ids[:3], 5).ids
    assert not [path for path in out.rglob("model*.safetensors") if not more], "weights are there once"


@pytest.mark.parametrize(
    "objective",
    [[], ["--objective", "sampled_softmax", "--negatives", "20", "--normalise"]],
    ids=["products", "cosines"],
)
def test_the_parts_are_read_without_transrec(exported, tmp_path, monkeypatch, capfd, objective):
    before, out = exported("frozen", "--user_encoder", "gru4rec", *objective)
    file = VectorFile(out / "items" / "embeddings.npy")
    assert file.ids == before.ids
    np.testing.assert_array_equal(file.states[:, 0], before.embeddings.numpy())
    history = before.ids[:8]
    assert len((out / "example.py").read_text().splitlines()) <= 25
    words = sys.argv
    monkeypatch.setattr(sys, "argv", ["example.py", *history])
    capfd.readouterr()
    runpy.run_path(str(out / "example.py"))
    rows = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
    monkeypatch.setattr(sys, "argv", words)
    found = before.recommend(history, 10)
    assert [item for item, _ in rows] == found.ids
    np.testing.assert_allclose([float(score) for _, score in rows], found.scores, atol=1e-5)
    inputs = torch.randn(5, 6, 16), torch.arange(6).expand(5, 6) > 2
    several = torch.export.load(out / "user_encoder.pt2").module()(*inputs)
    torch.testing.assert_close(several, before.user_encoder(*inputs)[:, -1])

    _, metadata, text = (out / "README.md").read_text().split("---\n", 2)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    (entry,) = yaml.safe_load(metadata)["model-index"][0]["results"]
    assert {one["type"]: one["value"] for one in entry["metrics"]} == pytest.approx(result["test"], abs=1e-6)
    assert f"{result['trainable_parameters']:,}" in text and "60 users of 60" in text
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(REPOSITORY / "scripts" / "export_model.py"), run_name="__main__")
    assert left.value.code == 2, "the folder is there already"


@pytest.mark.parametrize("more", ["pretrained", "checkpoint", "published"])
@pytest.mark.usefixtures("no_user_encoder")
def test_peft_reads_lora(exported, backbones, source, more):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    given = {"checkpoint": ["--checkpoint", str(source)], "published": ["--variant", "published"]}.get(more, [])
    before, out = exported("lora", "--adapter_lr", "1e-2", *given)
    base = backbones["bert"] if more == "pretrained" else out / "peft" / "text" / "base"
    theirs = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(base), out / "peft" / "text").eval()
    inputs = {"input_ids": torch.tensor([[2, 60, 70, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.no_grad():
        ours = before.item_encoder.backbone(**inputs).last_hidden_state
        torch.testing.assert_close(theirs(**inputs).last_hidden_state, ours, atol=1e-5, rtol=0)
        assert str(backbones["bert"]) not in (out / "peft" / "text" / "adapter_config.json").read_text()
        with theirs.disable_adapter():
            assert (theirs(**inputs).last_hidden_state - ours).abs().max() > 1e-4, "LoRA has changed something"


def test_a_user_encoder_that_cannot_be_exported_is_named(tmp_path):
    class Deciding(UserEncoder):
        def forward(self, item_embeddings, mask):
            return item_embeddings if item_embeddings.sum().item() > 0 else -item_embeddings

    with pytest.raises(TransrecError, match=r"user encoder Deciding: torch.export cannot export it"):
        export_user_encoder(Deciding(4), 3, tmp_path / "x.pt2")
    assert not (tmp_path / "x.pt2").exists()
