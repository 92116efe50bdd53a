"""Optimisers and schedules by name."""

import pytest
import torch
from conftest import FEW_STEPS, run
from test_training import assert_same_run, run_to_the_first_save

from transrec.errors import TransrecError
from transrec.methods import TrainableGroup
from transrec.methods.iisan.network import SideTower
from transrec.settings import parse
from transrec.training.optimizers import OPTIMIZERS, SGD
from transrec.training.schedules import Constant, Cosine, Linear
from transrec.training.trainer import Trainer, _optimizer_groups


def test_factors_of_schedules():
    assert [Constant()(step, 4) for step in range(4)] == [1.0] * 4
    assert [Constant(warmup_steps=2)(step, 4) for step in range(4)] == [0.5, 1, 1, 1]
    assert [Linear()(step, 4) for step in range(4)] == [1, 0.75, 0.5, 0.25]
    assert [Linear(warmup_share=0.5)(step, 4) for step in range(4)] == [0.5, 1, 1, 0.5]
    assert [Linear(warmup_steps=9)(step, 4) for step in range(4)] == [1 / 9, 2 / 9, 3 / 9, 4 / 9]
    assert [Cosine()(step, 4) for step in range(4)] == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_what_an_optimizer_says_of_its_state_is_its_state(name):
    optimizer = OPTIMIZERS.get(name)(**OPTIMIZERS.get(name).Options().as_dict())
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    torch_optimizer = optimizer.make([{"params": [parameter], "lr": 0.1, "decays": True}])
    parameter.grad = torch.ones(2, 3)
    torch_optimizer.step()
    actual, declared = (
        {key: (value.shape, value.dtype) for key, value in state.items()}
        for state in (torch_optimizer.state[parameter], optimizer.state_like(parameter))
    )
    assert actual == declared and not torch.equal(parameter, torch.ones(2, 3))


def test_sgd_by_hand():
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    torch_optimizer = SGD(momentum=0.5, weight_decay=0.0).make([{"params": [parameter], "lr": 0.1}])
    for _ in range(2):
        parameter.grad = torch.tensor([1.0])
        torch_optimizer.step()
    # 1 - 0.1 * 1 - 0.1 * (0.5 * 1 + 1)
    assert parameter.item() == pytest.approx(0.75)
    assert SGD(momentum=0.0, weight_decay=0.0).state_like(parameter) == {}


def test_adamw_decays_weights_alone():
    """In a step with zero gradients, which only decays, LayerNorms, biases and embeddings do not change."""
    model = torch.nn.ModuleDict(
        {"layer": torch.nn.Linear(3, 3), "norm": torch.nn.LayerNorm(3), "table": torch.nn.Embedding(4, 3)}
    )
    model.register_parameter("position_embeddings", torch.nn.Parameter(torch.ones(1, 2, 3)))
    # With three states at each step, the gates are a matrix.
    model["gated"] = SideTower([torch.nn.Identity()] * 2, gated=True, states_per_step=3)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    groups = _optimizer_groups(model, [TrainableGroup("all", 0.1, dict(model.named_parameters()))])
    assert [group["decays"] for group in groups] == [True, False]
    optimizer = OPTIMIZERS.get("adamw")(weight_decay=0.5).make(groups)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {"layer.weight"}
    torch.testing.assert_close(model["layer"].weight, 0.95 * before["layer.weight"])


@pytest.fixture
def rates(monkeypatch):
    """The learning rates of each step of the runs that a test starts."""
    noted, original = [], Trainer._set_rates

    def note(trainer):
        original(trainer)
        # Each group of the method is two groups of the optimiser: with and without decay.
        rates = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
        noted.append([rates[group.name] for group in trainer.groups])

    monkeypatch.setattr(Trainer, "_set_rates", note)
    return noted


MORE = (*FEW_STEPS, "--epochs", "2", "--lr", "1e-2", "--backbone_lr", "1e-3")


@pytest.mark.parametrize(
    "words",
    [
        ["--optimizer", "sgd", "--schedule", "linear", "--warmup_share", "0.3"],
        ["--optimizer", "adamw", "--weight_decay", "0.1", "--schedule", "cosine", "--warmup_steps", "2"],
    ],
    ids=["sgd, linear", "adamw, cosine"],
)
def test_a_run_that_was_stopped_resumes_to_the_same_numbers(flags, tmp_path, monkeypatch, rates, words):
    arguments = [*flags, *MORE, *words, "--save_steps", "2"]
    run([*arguments, "--output", str(tmp_path / "unbroken")])
    unbroken = rates.copy()
    assert len({backbone for backbone, _ in unbroken}) > 3
    assert all(recommender == pytest.approx(10 * backbone) for backbone, recommender in unbroken), "each group's own"
    rates.clear()

    run_to_the_first_save(monkeypatch, [*arguments, "--output", str(tmp_path / "resumed")])
    assert len(rates) == 2
    run(["--resume", str(tmp_path / "resumed")])
    assert rates == unbroken
    assert_same_run(tmp_path / "unbroken", tmp_path / "resumed")


def test_epochs_of_a_schedule_that_reads_them_stay(flags, tmp_path):
    run([*flags, *MORE, "--schedule", "linear", "--keep_state", "--output", str(tmp_path)])
    with pytest.raises(TransrecError, match=r"cannot be resumed with --epochs 3 \(was 2\)"):
        run(["--resume", str(tmp_path), "--epochs", "3"])


@pytest.mark.parametrize(
    "words,message",
    [
        (
            ["--optimizer", "adma"],
            "--optimizer adma: unknown; did you mean adam or adamw? choose from adam,",
        ),
        (
            ["--schedule", "cosin"],
            "--schedule cosin: unknown; did you mean cosine? choose from constant,",
        ),
        (["--weight_decay", "1"], "--weight_decay: no flag of optimizer adam, but of adamw, sgd"),
        (["--warmup_share", "0.1"], "--warmup_share: no flag of schedule constant, but of cosine, linear"),
        (["--schedule", "linear", "--warmup_share", "1"], "--warmup_share 1.0: must be at least 0 and below 1"),
        (["--optimizer", "sgd", "--momentum", "1"], "--momentum 1.0: must be below 1"),
        (["--metrics", "recal"], "--metrics recal: unknown; did you mean recall? choose from"),
        (["--tracker", "tensorbord"], "--tracker tensorbord: unknown; did you mean tensorboard"),
    ],
)
def test_mistakes(flags, words, message):
    with pytest.raises(TransrecError) as caught:
        parse([*flags, *words], "full", {})
    assert str(caught.value).startswith(message)
