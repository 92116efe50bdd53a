"""The settings of the papers' protocol, initial weights, and the metric that chooses the best epoch."""

import json

import pytest
import torch
from conftest import FEW_STEPS, fitting, run
from torch import nn

from transrec.assembly import build_recommender
from transrec.settings import Settings, parse
from transrec.training.optimizers import without_decay


def made(flags, *words, method="full", **defaults):
    return parse(fitting([*flags, *words]), method, defaults)


def chosen(settings):
    return {name: settings.as_dict()[name] for name in ("objective", "init", "patience_steps")}


@pytest.mark.parametrize("tower,objective", [("id", "bce"), ("text", "bce"), ("text+image", "in_batch")])
def test_the_published_protocol_is_one_flag_away(flags, tower, objective):
    settings = made(flags, "--item_tower", tower, "--protocol", "published")
    assert chosen(settings) == {"objective": objective, "init": "xavier", "patience_steps": 0}
    assert settings.set_by["init"].startswith("protocol published")
    strong = made(flags, "--item_tower", tower)
    assert strong.model.init == "normal" and strong.training.patience_steps > 0


def test_who_decides_against_the_protocol(flags):
    words = ["--item_tower", "id", "--protocol", "published"]
    assert made(flags, *words, "--init", "normal").set_by["protocol"] == "command line"
    assert made(flags, *words, "--objective", "bpr").model.objective == "bpr"
    assert made(flags, *words, objective="cpc").model.objective == "cpc", "a script's own"


def test_ids_train_by_what_ranks_best_unless_told_otherwise(flags):
    settings = made(flags, "--item_tower", "id")
    assert settings.model.objective == "in_batch" and settings.set_by["objective"] == "preset of item IDs"


@pytest.mark.parametrize("init", ["normal", "xavier"])
@pytest.mark.parametrize("tower", ["id", "text", "text+id"])
def test_weights_outside_backbones_start_as_said(flags, init, tower):
    settings = made(flags, "--item_tower", tower, "--init", init, "--init_std", "0.5", "--embedding_dim", "64")
    recommender, again = (build_recommender(settings.plan, item_count=3000) for _ in range(2))
    for (name, module), other in zip(recommender.named_modules(), again.modules(), strict=True):
        if ".backbone." not in name and isinstance(module, nn.Linear | nn.Embedding):
            assert torch.equal(module.weight, other.weight), "drawn by the seed"
            if init == "normal":
                assert module.weight.std().item() == pytest.approx(0.5, rel=0.1), name
            else:
                assert module.weight.std().item() == pytest.approx((2 / sum(module.weight.shape)) ** 0.5, rel=0.1), name
            assert getattr(module, "bias", None) is None or not module.bias.any()
            assert getattr(module, "padding_idx", None) is None or not module.weight[0].any()


def test_a_run_of_before_there_were_these_flags_is_read_as_it_was(flags):
    old = made(flags, "--item_tower", "id").as_dict()
    for name in ("init", "init_std", "protocol", "patience_steps", "select_by"):
        del old[name]
    settings = Settings.from_stored(old)
    assert settings.model.init == "xavier" and settings.training.patience_steps == 0
    assert settings.training.select_by == "HR@10"


STANDING = ("--lr", "0", "--backbone_lr", "0", "--epochs", "9", "--patience", "1")


@pytest.mark.parametrize("steps,epochs", [(0, 2), (6, 3), (7, 4), (1000, 9)])
def test_patience_waits_for_a_number_of_steps(flags, tmp_path, steps, epochs):
    """An epoch has three steps and nothing changes, so the first epoch is the best."""
    words = [*flags, *FEW_STEPS, *STANDING, "--patience_steps", str(steps), "--output", str(tmp_path)]
    assert run(words, "frozen")["epochs_trained"] == epochs


@pytest.mark.parametrize("metric", ["MRR", "NDCG@5", "HR@10"])
def test_the_best_epoch_is_chosen_by_any_computed_metric(flags, tmp_path, metric):
    words = [*flags, *FEW_STEPS, "--epochs", "4", "--lr", "1e-2", "--backbone_lr", "1e-2", "--select_by", metric]
    result = run([*words, "--output", str(tmp_path)])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    values = [line[f"validation {metric}"] for line in lines]
    assert result["best_epoch"] == 1 + values.index(max(values)) and result["selected_by"] == metric
    assert json.loads((tmp_path / "result.json").read_text())["selected_by"] == metric


@pytest.mark.parametrize(
    "words,told",
    [
        (["--select_by", "NDCG@7"], "--select_by NDCG@7: is not computed; choose from HR@5, NDCG@5, HR@10"),
        (["--select_by", "accuracy"], "--select_by accuracy: is not computed; choose from"),
        (["--select_by", "MRR", "--metrics", "hr"], "--select_by MRR: is not computed; choose from"),
        (["--select_by", "Gini@10", "--metrics", "gini", "hr"], "but here lower values are better; choose from HR@5,"),
        (["--train_recommender", "no"], "--train_recommender no: --method full always trains it; leave the flag out"),
        (["--init", "orthogonal"], "--init: 'orthogonal' is none of normal, xavier"),
        (["--init_std", "-1"], "--init_std -1.0: must be at least 0"),
        (["--protocol", "paper"], "--protocol: 'paper' is none of strong, published"),
    ],
)
def test_mistakes_are_one_line(command, words, told):
    status, message = command(*words, method="full")
    assert status == 2 and told in message, message


def test_what_does_not_decay_in_a_recommender(flags):
    recommender = build_recommender(made(flags).plan, item_count=10)
    standing = {name for name, parameter in recommender.named_parameters() if parameter in without_decay(recommender)}
    decaying = {name for name, _ in recommender.named_parameters()} - standing
    assert all(name.endswith("weight") and "norm" not in name.lower() and "embedding" not in name for name in decaying)
    assert {"user_encoder.position_embedding.weight", "user_encoder.layer_norm.weight"} <= standing
