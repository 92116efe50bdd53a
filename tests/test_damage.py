"""Runs whose files were edited or damaged: each is reported in one line, and no run continues from wrong numbers."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from transrec.errors import TransrecError
from transrec.finished import load_run
from transrec.training.trainer import Trainer


def spoil(path: Path, tensors=None, description=None) -> None:
    """Write a checkpoint again after `tensors(dict)` and `description(dict)` changed it in place."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["transrec"])
    held = load_file(path)
    if tensors:
        tensors(held)
    if description:
        description(header)
    save_file(held, path, metadata={"transrec": json.dumps(header)})


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, domain, backbones) -> Path:
    """Folder of a run that stopped in its second epoch."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    sizes = ["--embedding_dim", "16", "--max_seq_len", "6", "--title_tokens", "10", "--batch_size", "8"]
    flags = ["--dataset", str(domain), "--text_encoder", str(backbones["bert"]), *sizes, "--epochs", "3"]

    original = Trainer._step

    def interrupted(self, *arguments):
        if (self.state.epoch, self.state.step) == (2, 2):
            signal.raise_signal(signal.SIGTERM)
        return original(self, *arguments)

    Trainer._step = interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            run([*flags, "--output", str(folder)], "houlsby")
    finally:
        Trainer._step = original
    return folder


@pytest.fixture
def broken(stopped, tmp_path) -> Path:
    """A copy of the stopped run to spoil. Its options name the original's folder, which does not matter."""
    return shutil.copytree(stopped, tmp_path / "run")


def resume(folder: Path, *flags: str) -> dict:
    return run(["--resume", str(folder), *flags], "houlsby")


def first(tensors: dict, name: str) -> str:
    return next(key for key in sorted(tensors) if key.startswith(name))


def test_the_copy_resumes_as_it_is(broken):
    assert resume(broken)["epochs_trained"] == 3


def reshape(name: str, shape: tuple[int, ...]):
    def change(tensors: dict) -> None:
        tensors[first(tensors, name)] = torch.zeros(shape)

    return change


def retype(name: str):
    def change(tensors: dict) -> None:
        tensors[first(tensors, name)] = tensors[first(tensors, name)].half()

    return change


def drop(name: str):
    return lambda tensors: tensors.pop(first(tensors, name))


def put(*path: str, value):
    def change(description: dict) -> None:
        for name in path[:-1]:
            description = description[name]
        description[path[-1]] = value

    return change


BEST = [
    (None, put("epoch", value=2), "is of epoch 2, and the run's best is epoch 1"),
    (None, put("epoch", value="one"), "is of epoch one"),
    (None, put("validation", "HR@10", value=0.99), "is of epoch 1, and the run's best is epoch 1, of other weights"),
    (None, put("base", "frozen_sha256", value="0" * 64), "was trained on other base weights"),
    (None, put("base", value=[]), "its description is damaged"),
    (reshape("item_encoder", (1,)), None, r"is \[1\], this model's is \["),
    (retype("item_encoder"), None, r"is torch.float16, this model's is torch.float32"),
    (drop("item_encoder"), None, "is missing there"),
    (
        lambda tensors: tensors.update(stray=torch.zeros(1)),
        None,
        "stray is missing there, or is not a trainable tensor",
    ),
]
LAST = [
    (reshape("optimizer.exp_avg.", (1,)), None, r"exp_avg.* is \[1\], this model's is \["),
    (reshape("optimizer.step.", (4,)), None, r"optimizer.step.* is \[4\], this model's is \[\]"),
    (retype("optimizer.exp_avg_sq."), None, "is torch.float16, this model's is torch.float32"),
    (drop("optimizer.exp_avg."), None, "lacks optimizer.exp_avg"),
    (reshape("model.", (2, 2)), None, r"is \[2, 2\], this model's is"),
    (drop("model."), None, "is missing there, or is not a trainable tensor"),
    (None, put("state", value=[]), "its description is damaged"),
    (None, put("state", "step", value="two"), "epoch, step and best_epoch are"),
    (None, put("state", "step", value=-1), "epoch, step and best_epoch are"),
    (None, put("state", "epoch", value=7), "epoch 7, best epoch 1, 1 metrics"),
    (None, put("state", "best_epoch", value=0), "best epoch 0, 1 metrics"),
    (None, put("state", "best_epoch", value=5), "its description is damaged"),
    (None, put("state", "best_metrics", value={"HR@10": 2.0}), "best_metrics are not those of epoch 1"),
    (None, put("state", "loss_sum", value=None), "its description is damaged"),
    (None, put("state", "unheard_of", value=1), "its description is damaged"),
    (None, put("scaler", value={"scale": "x"}), None),
    (None, put("format", value=99), "checkpoint format 99"),
    (None, put("method", value=3), "its description is damaged"),
]


@pytest.mark.parametrize(("tensors", "description", "expected"), BEST)
def test_a_best_checkpoint_of_something_else_is_found_when_the_run_resumes(broken, tensors, description, expected):
    spoil(broken / "checkpoints" / "best.safetensors", tensors, description)
    with pytest.raises(TransrecError, match=expected):
        resume(broken)
    assert len((broken / "metrics.jsonl").read_text().splitlines()) == 1, "training had gone on"


def test_a_best_checkpoint_that_is_gone_is_found_when_the_run_resumes(broken):
    (broken / "checkpoints" / "best.safetensors").unlink()
    with pytest.raises(
        TransrecError, match=r"best\.safetensors: the best epoch's weights are not there; put them back"
    ):
        resume(broken)
    assert len((broken / "metrics.jsonl").read_text().splitlines()) == 1, "training had gone on"


@pytest.mark.parametrize(("tensors", "description", "expected"), BEST[:6])
def test_a_best_checkpoint_that_changes_while_the_run_trains_is_found_before_the_test(
    broken, monkeypatch, tensors, description, expected
):
    original = Trainer._finish_epoch

    def finish(self):
        original(self)
        if self.state.finished:
            # The metrics of this epoch may have made it the best one.
            self.state.best_epoch, self.state.best_metrics = 1, self.evaluator.evaluate(self.recommender, "validation")
            spoil(self.run.best, None, put("epoch", value=1))
            spoil(self.run.best, None, put("validation", value=self.state.best_metrics))
            spoil(self.run.best, tensors, description)

    monkeypatch.setattr(Trainer, "_finish_epoch", finish)
    with pytest.raises(TransrecError, match=expected):
        resume(broken)
    assert not (broken / "result.json").exists()


@pytest.mark.parametrize(("tensors", "description", "expected"), LAST)
def test_a_damaged_state_is_told_in_one_line(broken, tensors, description, expected):
    spoil(broken / "checkpoints" / "last.safetensors", tensors, description)
    if expected is None:
        # fp32 scales nothing, so the scale in the state is never read.
        resume(broken)
        return
    with pytest.raises(TransrecError, match=expected) as caught:
        resume(broken)
    assert "\n" not in str(caught.value) and "last.safetensors" in str(caught.value)


def edit(folder: Path, **changes) -> None:
    path = folder / "options.json"
    options = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in options.items() if value != "REMOVED"}))


def test_edited_options_are_refused_by_name_unless_accepted(broken):
    edit(broken, adapter_lr=0.5, seed=3)
    with pytest.raises(TransrecError, match=r"seed 3 \(was 0\), adapter_lr 0.5 \(was 0.00015\); restore it, or accept"):
        resume(broken)
    assert resume(broken, "--accept_edits")["seed"] == 3
    # The file now holds the options that the run continued with.
    assert resume(broken)["seed"] == 3


def test_edited_hashes_of_the_data_are_refused(broken):
    edit(broken, files={})
    with pytest.raises(TransrecError, match="its digest does not fit"):
        resume(broken)


def test_edits_of_what_decides_no_number_need_no_leave(broken):
    edit(broken, epochs=2, eval_batch=16)
    assert resume(broken)["epochs_trained"] == 2


def test_options_of_runs_without_a_digest_are_taken(broken):
    edit(broken, digest="REMOVED")
    assert resume(broken)["epochs_trained"] == 3


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lr": "fast"}, "options.json: --lr 'fast': must be a number"),
        ({"batch_size": 8.5}, "options.json: --batch_size 8.5: must be a whole number"),
        ({"batch_size": True}, "options.json: --batch_size True: must be a whole number"),
        ({"cutoffs": "10"}, "options.json: --cutoffs '10': must be a list"),
        ({"dataset": 5}, "options.json: --dataset 5: must be text"),
        ({"lower_case": "yes"}, "options.json: --lower_case 'yes': must be true or false"),
        (
            {"objective": "guess"},
            "options.json: --objective guess: unknown; choose from bce, bpr, cpc, ",
        ),
        ({"method": "REMOVED"}, "options.json: --method : unknown"),
        ({"method": 3}, "options.json: --method 3: unknown"),
        ({"max_seq_len": 0}, "options.json: --max_seq_len 0: must be at least 1"),
    ],
)
def test_options_that_no_flag_would_take(broken, changes, expected):
    edit(broken, **changes)
    for act in (resume, load_run):
        with pytest.raises(TransrecError, match=r"options\.json") as caught:
            act(broken)
        assert expected in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", '"text"', "null", "\x00"])
def test_options_that_are_no_options(broken, text):
    (broken / "options.json").write_text(text)
    for act in (resume, load_run):
        with pytest.raises(TransrecError, match=r"options\.json: not the options of a run"):
            act(broken)


def test_a_checkpoint_that_is_its_own_base(broken, flags, tmp_path):
    run([*flags, "--epochs", "1", "--output", str(tmp_path / "frozen")], "frozen")
    best = tmp_path / "frozen" / "checkpoints" / "best.safetensors"
    spoil(best, None, put("base", "checkpoint", value=str(tmp_path / "frozen")))
    with pytest.raises(TransrecError, match="names itself as the base"):
        run([*flags, "--checkpoint", str(best), "--output", str(tmp_path / "next")], "houlsby")
