"""What is constant is computed once: which backbones are, and that the numbers are those of running them every step."""

import json

import pytest
import torch
from conftest import BOTH, encoder_flags, run
from test_training import best, numbers
from torch import nn

from transrec.caching import structure, why_not_constant
from transrec.errors import TransrecError
from transrec.models.towers import BackboneTower
from transrec.runner import load_run
from transrec.training import checkpoint
from transrec.training.run import read_options

CONSTANT = {
    "frozen, bert": ("frozen", "bert", []),
    "frozen, mae": ("frozen", "mae", []),
    "houlsby in the user encoder": ("houlsby", BOTH, ["--insert", "user"]),
    "iisan": ("iisan", BOTH, []),
}


@pytest.mark.parametrize("case", CONSTANT)
def test_a_constant_backbone_runs_once(flags, backbones, tmp_path, monkeypatch, case):
    method, kind, more = CONSTANT[case]
    flags = [*flags, *encoder_flags(kind, backbones), *more, "--lr", "1e-2", "--state_cache", str(tmp_path / "states")]
    run([*flags, "--cached", "no", "--output", str(tmp_path / "no")], method)
    read: list[int] = []
    for reads in ("read", "read_out"):
        for tower in BackboneTower.__subclasses__():
            noted = getattr(tower, reads)
            monkeypatch.setattr(
                tower, reads, lambda self, *inputs, noted=noted: read.append(len(inputs[0])) or noted(self, *inputs)
            )
    run([*flags, "--output", str(tmp_path / "auto")], method)
    items = 150 if kind == "bert" else None
    assert len(read) <= 2 * len(kind.split("+")), "one block of items per backbone, read by `read` and `read_out`"
    assert items is None or sum(read) <= items
    read.clear()
    run([*flags, "--cached", "yes", "--output", str(tmp_path / "yes")], method)
    log = (tmp_path / "auto" / "log.txt").read_text()
    assert all(f"caching     {modality}: " in log for modality in load_modalities(kind))
    one, other, third = (numbers(tmp_path / name) for name in ("no", "auto", "yes"))
    for a, b, c in zip(one["epochs"], other["epochs"], third["epochs"], strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5) == c["train_loss"]
    for name in ("total_parameters", "trainable_parameters"):
        assert one[name] == other[name] == third[name], "backbones count, in memory or not"
    for part in ("validation", "test"):
        assert one[part] == pytest.approx(other[part], abs=5e-5)
    described = [checkpoint.describe(tmp_path / name / "checkpoints/best.safetensors") for name in ("no", "auto")]
    assert described[0]["base"] == described[1]["base"], "the backbone is part of what a run relies on"
    loaded = load_run(tmp_path / "auto")
    for name, tensor in best(tmp_path / "auto").items():
        assert torch.equal(loaded.get_parameter(name), tensor)
    assert all(tower.backbone is not None for tower in loaded.item_encoder.towers)


def load_modalities(kind: str) -> list[str]:
    return {"bert": ["text"], "mae": ["image"]}.get(kind, ["text", "image"])


@pytest.mark.parametrize(
    "method,kind,more,why",
    [
        ("full", "bert", [], "parameters inside the text encoder train"),
        ("houlsby", BOTH, [], "parameters inside the text encoder train"),
        ("lora", "bert", ["--insert", "item"], "parameters inside the text encoder train"),
        ("frozen", "bert", ["--backbone_dropout", "on"], "the text encoder's dropout is on"),
        ("frozen", "mae", ["--mask_ratio", "0.5"], "--mask_ratio 0.5 draws other patches each time"),
        ("iisan", "bert", ["--backbone_dropout", "on"], "not with --backbone_dropout on"),
    ],
)
def test_what_is_not_constant_is_computed_in_every_step(flags, backbones, tmp_path, method, kind, more, why):
    flags = [*flags, *encoder_flags(kind, backbones), *more, "--state_cache", str(tmp_path / "states")]
    with pytest.raises(TransrecError, match=f"^--cached yes: .*{why.replace('(', '.')}"):
        run([*flags, "--cached", "yes", "--output", str(tmp_path / "yes")], method)
    assert not (tmp_path / "yes").exists()
    run([*flags, "--output", str(tmp_path / "auto"), "--epochs", "1"], method)
    assert not (tmp_path / "states").exists() and "caching" not in (tmp_path / "auto" / "log.txt").read_text()


def test_what_changes_a_backbone_without_training_in_it_is_found(flags, tmp_path):
    run(
        [*flags, "--epochs", "1", "--state_cache", str(tmp_path / "states"), "--output", str(tmp_path / "run")],
        "frozen",
    )
    tower = load_run(tmp_path / "run").item_encoder
    before = structure(tower.backbone)
    assert why_not_constant(tower, before) == ""
    handle = tower.backbone.encoder.register_forward_hook(lambda *of: None)
    assert why_not_constant(tower, before) == "the method changes the text encoder"
    handle.remove()
    tower.backbone.encoder.layer[1].output.dropout = nn.Identity()
    assert why_not_constant(tower, before) == "the method changes the text encoder"


def test_a_run_of_before_goes_on_as_it_began(flags, tmp_path):
    """Without --cached in its options, it ran the backbone in every step."""
    flags = [*flags, "--state_cache", str(tmp_path / "states")]
    run([*flags, "--cached", "no", "--output", str(tmp_path / "run"), "--epochs", "1", "--keep_state"], "frozen")
    path = tmp_path / "run" / "options.json"
    options = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("cached", "digest")}
    path.write_text(json.dumps(options))
    run(["--resume", str(tmp_path / "run"), "--epochs", "2"])
    assert read_options(tmp_path / "run")["cached"] == "no" and not (tmp_path / "states").exists()
