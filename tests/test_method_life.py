"""What a method may do in addition to insertion: groups of parameters, a penalty, steps, saved buffers."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from conftest import run
from test_training import assert_same_run, best, numbers
from torch import nn

from transrec import methods
from transrec.errors import TransrecError
from transrec.finished import load_run
from transrec.methods.base import InsertOptions, Method, Place
from transrec.options import flag
from transrec.registry import forget
from transrec.training import checkpoint
from transrec.training.trainer import Trainer


class Shifted(nn.Module):
    """scale * inner(x) + shift + mean, where `mean` is updated after training steps."""

    def __init__(self, inner: nn.Linear):
        super().__init__()
        self.inner = inner
        self.shift = nn.Parameter(torch.full((inner.out_features,), 0.1))
        self.scale = nn.Parameter(torch.ones(inner.out_features))
        self.register_buffer("mean", torch.zeros(inner.out_features))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("constant", torch.ones(3), persistent=False)

    def forward(self, x):
        return self.scale * self.inner(x) + self.shift + self.mean


@dataclass(frozen=True)
class ShiftOptions(InsertOptions):
    _minimum: ClassVar[dict[str, float]] = {"ratio": 0, "weight": 0}

    ratio: float = flag(3.0, "Learning rate of the scales, as a multiple of that of the shifts.")
    weight: float = flag(0.5, "Weight of the penalty.")


class Shift(Method):
    """A method with two groups, a penalty on one group, and a mean of gradients on which the next output depends."""

    Options = ShiftOptions

    def __init__(self):
        self.layers, self.seen = [], []

    def insert(self, place: Place, options: ShiftOptions) -> dict[str, list[nn.Parameter]]:
        self.weight = options.weight
        for block in place.blocks:
            block.query.replace(Shifted(block.query.module))
            self.layers.append(block.query.module)
        new = self.layers[-len(place.blocks) :]
        return {"shifts": [layer.shift for layer in new], "scales": [layer.scale for layer in new]}

    def rates(self, options: ShiftOptions) -> dict[str, float]:
        return super().rates(options) | {"shifts": options.adapter_lr, "scales": options.ratio * options.adapter_lr}

    def penalty(self):
        return self.weight * sum(layer.shift.square().sum() for layer in self.layers) if self.weight else None

    def after_step(self, step: int, steps: int) -> None:
        self.seen.append((step, steps))
        for layer in self.layers:
            layer.mean.mul_(0.5).add_(layer.scale.grad, alpha=0.5 * step / steps)
            layer.steps += 1


@pytest.fixture
def shift():
    methods.register("shift")(Shift)
    yield "shift"
    forget(Path(__file__))


@pytest.fixture
def trainers(monkeypatch):
    """The trainers of the runs that a test starts."""
    created = []
    original = Trainer.__init__

    def record(self, *arguments, **options):
        original(self, *arguments, **options)
        created.append(self)

    monkeypatch.setattr(Trainer, "__init__", record)
    return created


def test_groups_have_rates_of_their_own(flags, tmp_path, shift):
    result = run([*flags, "--output", str(tmp_path), "--epochs", "1", "--adapter_lr", "0.25"], shift)
    assert {row["what"]: row["lr"] for row in result["parameters"]} == {
        "frozen": None,
        "shifts": 0.25,
        "scales": 0.75,
        "recommender": 1e-4,
    }
    assert "scales" in (tmp_path / "log.txt").read_text()
    # Two blocks of width 32 and two of width 16, with a shift and a scale each.
    assert [row["parameters"] for row in result["parameters"] if row["what"] in ("shifts", "scales")] == [
        64,
        64,
        32,
        32,
    ]


def test_a_group_without_a_rate_is_told(flags, tmp_path, shift, monkeypatch):
    monkeypatch.setattr(Shift, "rates", Method.rates)
    with pytest.raises(
        TransrecError, match=r"--method shift: its rates\(\) has no learning rate for its parameter group 'scales'"
    ):
        run([*flags, "--output", str(tmp_path)], shift)


def test_each_group_moves_at_its_rate(flags, tmp_path, shift, trainers):
    """Adam's first step moves every weight by its rate, whatever the gradient, if its eps is much smaller."""
    words = ["--epochs", "1", "--batch_size", "60", "--adapter_lr", "1e-2", "--init", "xavier"]
    run([*flags, *words, "--output", str(tmp_path)], shift)
    layer = trainers[0].recommender.user_encoder.blocks[0].attention.query
    for moved, rate in ((layer.shift - 0.1, 1e-2), (layer.scale - 1, 3e-2)):
        assert moved.abs().median().item() == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize("pieces", ["1", "3"])
def test_the_penalty_counts_once(flags, tmp_path, shift, trainers, pieces):
    """A step's gradient is that of the loss plus once that of the penalty, for any number of pieces of a batch."""
    still = ["--epochs", "1", "--batch_size", "60", "--adapter_lr", "0", "--lr", "0", "--dropout", "0"]
    for weight in ("0", "0.5"):
        run([*flags, *still, "--accumulate", pieces, "--weight", weight, "--output", str(tmp_path / weight)], shift)
    without, with_it = (trainer.recommender.method.layers for trainer in trainers)
    for one, other in zip(without, with_it, strict=True):
        # The gradient of 0.5 |shift|^2 is the shift, 0.1 everywhere.
        torch.testing.assert_close(other.shift.grad - one.shift.grad, torch.full_like(one.shift, 0.1))
        torch.testing.assert_close(other.scale.grad, one.scale.grad)
    losses = [numbers(tmp_path / weight)["epochs"][0]["train_loss"] for weight in ("0", "0.5")]
    assert losses[1] - losses[0] == pytest.approx(0.5 * 0.01 * (64 + 32), rel=1e-5)


def test_the_method_steps_after_the_optimiser(flags, tmp_path, shift, trainers):
    run([*flags, "--output", str(tmp_path)], shift)
    # 60 users in batches of 8: eight steps in each of two epochs.
    assert trainers[0].recommender.method.seen == [(step, 16) for step in range(1, 17)]


def test_buffers_are_saved_and_loaded(flags, tmp_path, shift, trainers):
    result = run([*flags, "--output", str(tmp_path), "--adapter_lr", "1e-2"], shift)
    tensors, description = checkpoint.read(tmp_path / "checkpoints" / "best.safetensors")
    buffers = {name for name in tensors if name.endswith((".mean", ".steps"))}
    assert len(buffers) == 2 * 4 and not any("constant" in name for name in tensors)
    assert sum(t.numel() for name, t in tensors.items() if name not in buffers) == result["trainable_parameters"]
    loaded = load_run(tmp_path)
    assert not any(buffer.endswith("position_ids") for buffer in loaded.saved_buffers)
    layer = loaded.user_encoder.blocks[1].attention.query
    assert layer.steps == 8 * description.epoch and layer.mean.abs().max() > 0
    for name in buffers:
        assert torch.equal(loaded.get_buffer(name), tensors[name])
        # After its test, the trainer holds the best epoch, too.
        assert torch.equal(trainers[0].recommender.get_buffer(name), tensors[name])


def test_a_checkpoint_without_a_buffer_is_refused(flags, tmp_path, shift):
    run([*flags, "--output", str(tmp_path), "--epochs", "1"], shift)
    path = tmp_path / "checkpoints" / "best.safetensors"
    tensors, description = checkpoint.read(path)
    name = next(name for name in tensors if name.endswith(".mean"))
    checkpoint.save(path, {other: tensor for other, tensor in tensors.items() if other != name}, description)
    with pytest.raises(TransrecError, match=rf"lacks 1 tensors of this model, {name}"):
        load_run(tmp_path)


def test_a_run_that_was_killed_resumes_with_its_buffers(flags, tmp_path, shift, monkeypatch):
    flags = [*flags, "--adapter_lr", "1e-2", "--save_steps", "2"]
    run([*flags, "--output", str(tmp_path / "whole")], shift)
    step = Trainer._step

    def fall(self, *arguments):
        if (self.state.epoch, self.state.step) == (2, 5):
            raise RuntimeError("killed")
        return step(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(Trainer, "_step", fall)
        run([*flags, "--output", str(tmp_path / "parts")], shift)
    run(["--resume", str(tmp_path / "parts")], shift)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert any(name.endswith(".mean") for name in best(tmp_path / "parts"))
