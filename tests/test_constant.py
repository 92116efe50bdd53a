"""Constant outputs are computed once: which backbones are constant, and that numbers equal those of every-step runs."""

import json

import pytest
import torch
from conftest import BOTH, encoder_flags, run
from test_training import best, numbers
from torch import nn

from transrec.caching import structure, why_not_constant
from transrec.errors import TransrecError
from transrec.finished import load_run
from transrec.models.towers import BackboneTower
from transrec.reports.states import find_states, listing
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
    # A tower reads an example of two items when it is built.
    read = [count for count in read if count > 2]
    assert len(read) <= 2 * len(kind.split("+")), "one block of items per backbone, read by `read` and `read_out`"
    assert items is None or sum(read) <= items
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
    assert described[0].base == described[1].base, "the backbone is part of what a run relies on"
    loaded = load_run(tmp_path / "auto")
    for name, tensor in best(tmp_path / "auto").items():
        assert torch.equal(loaded.get_parameter(name), tensor)
    assert all(tower.backbone is not None for tower in loaded.item_encoder.towers)


def load_modalities(kind: str) -> list[str]:
    return {"bert": ["text"], "llama": ["text"], "mae": ["image"]}.get(kind, ["text", "image"])


LAST_BLOCKS = {
    "houlsby, bert": ("houlsby", "bert", ["--insert", "all_last1"]),
    "lora, llama": ("lora", "llama", ["--insert", "item_last1"]),
    "kadapter, bert": ("kadapter", "bert", ["--insert", "item_last1", "--item_heads", "2", "--item_size", "8"]),
    "full, mae": ("full", "mae", ["--train_last", "1"]),
    "bitfit, both": ("bitfit", BOTH, ["--insert", "item_last1"]),
}


@pytest.mark.parametrize("case", LAST_BLOCKS)
def test_blocks_below_those_that_change_run_once(flags, backbones, tmp_path, case):
    """Numbers equal those of running the blocks in every step, and a stopped run resumes to the same numbers."""
    method, kind, more = LAST_BLOCKS[case]
    flags = [*flags, *encoder_flags(kind, backbones), *more, "--lr", "1e-2", "--state_cache", str(tmp_path / "states")]
    run([*flags, "--cached", "no", "--output", str(tmp_path / "no")], method)
    run([*flags, "--output", str(tmp_path / "auto"), "--epochs", "1", "--keep_state"], method)
    run(["--resume", str(tmp_path / "auto"), "--epochs", "2"])
    log = (tmp_path / "auto" / "log.txt").read_text()
    for modality in load_modalities(kind):
        assert (
            f"computed    {modality}: blocks 1 to 1, once for " in log and f"caching     {modality}: states of" in log
        )
    one, other = (numbers(tmp_path / name) for name in ("no", "auto"))
    for a, b in zip(one["epochs"], other["epochs"], strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-6)
    assert one["parameters"] == other["parameters"] and one["test"] == pytest.approx(other["test"], abs=5e-5)
    trained, same = (best(tmp_path / name) for name in ("no", "auto"))
    assert trained.keys() == same.keys()
    if method not in ("kadapter", "bitfit"):
        assert all(".0." not in name.partition("backbone")[2] for name in trained), "of two blocks the last trains"
    for name, tensor in trained.items():
        torch.testing.assert_close(same[name], tensor, atol=2e-5, rtol=1e-3)
    loaded = load_run(tmp_path / "auto")
    assert all(torch.equal(loaded.get_parameter(name), tensor) for name, tensor in same.items())


def test_states_of_tokens_in_fp16_and_on_disk(flags, tmp_path):
    """Blocks of 256 items may end at any token; the listing reports how many items a file holds."""
    more = ["--train_last", "1", "--state_cache", str(tmp_path / "states"), "--epochs", "1"]
    for place in ("cpu", "disk"):
        run([*flags, *more, "--state_dtype", "fp16", "--cache_device", place, "--output", str(tmp_path / place)])
    assert numbers(tmp_path / "cpu")["epochs"] == numbers(tmp_path / "disk")["epochs"]
    run([*flags, *more, "--cached", "no", "--output", str(tmp_path / "no")])
    half, whole = (numbers(tmp_path / name)["epochs"][0]["train_loss"] for name in ("cpu", "no"))
    assert half == pytest.approx(whole, rel=1e-3)
    assert "; states tokens 1; " in listing(find_states([tmp_path / "states"]))


def test_blocks_that_a_backbone_has_not(flags, tmp_path):
    for method, flag, given in (("houlsby", "insert", "item_last3"), ("full", "train_last", "3")):
        with pytest.raises(TransrecError, match=f"^--{flag} {given}: the item encoder has 2 blocks of its own"):
            run([*flags, f"--{flag}", given, "--output", str(tmp_path / "run")], method)
    with pytest.raises(TransrecError, match=r"^--insert 'item_last0': must be one of item, user, user_"):
        run([*flags, "--insert", "item_last0", "--output", str(tmp_path / "run")], "houlsby")


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
    handle = tower.backbone.encoder.register_forward_hook(lambda *arguments: None)
    assert why_not_constant(tower, before) == "the method changes the text encoder"
    handle.remove()
    tower.backbone.encoder.layer[1].output.dropout = nn.Identity()
    assert why_not_constant(tower, before) == "the method changes the text encoder"


def test_what_is_frozen_beside_what_is_stored_does_not_hinder_resuming(flags, tmp_path):
    """With a source checkpoint the projection stays frozen, and is not part of a run's state."""
    flags = [*flags, "--state_cache", str(tmp_path / "states"), "--epochs", "1"]
    run([*flags, "--output", str(tmp_path / "source")])
    more = ["--insert", "user", "--checkpoint", str(tmp_path / "source"), "--keep_state"]
    run([*flags, *more, "--output", str(tmp_path / "run")], "houlsby")
    run(["--resume", str(tmp_path / "run"), "--epochs", "2"])
    run([*flags, *more, "--epochs", "2", "--output", str(tmp_path / "unbroken")], "houlsby")
    assert numbers(tmp_path / "run")["epochs"] == numbers(tmp_path / "unbroken")["epochs"]


def test_a_run_of_before_goes_on_as_it_began(flags, tmp_path):
    """A run without --cached in its options ran the backbone in every step."""
    flags = [*flags, "--state_cache", str(tmp_path / "states")]
    run([*flags, "--cached", "no", "--output", str(tmp_path / "run"), "--epochs", "1", "--keep_state"], "frozen")
    path = tmp_path / "run" / "options.json"
    options = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("cached", "digest")}
    path.write_text(json.dumps(options))
    run(["--resume", str(tmp_path / "run"), "--epochs", "2"])
    assert read_options(tmp_path / "run")["cached"] == "no" and not (tmp_path / "states").exists()
