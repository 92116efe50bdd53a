"""Steps on an accelerator, tried without one: the tensors have a device and a shape but no values.

A step fails if it reads a value of such a tensor, because the host would wait for the accelerator, or if it combines
tensors of two devices.
"""

from dataclasses import fields, replace
from itertools import product

import numpy as np
import pytest
import torch
from conftest import run
from examples import PACKAGED, small_flags, small_of, words_of
from test_image_runs import save_vision_transformer
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from transrec.data.batches import Batch
from transrec.data.groups import Inputs
from transrec.models.objectives import OBJECTIVES
from transrec.models.recommender import Recommender
from transrec.training.trainer import Trainer

DEVICE = torch.device("cuda", 0)
TINY = "--max_seq_len 6 --title_tokens 10 --embedding_dim 16 --epochs 1 --batch_size 8 --image_workers 0 --device cpu"
TOWERS = ("text", "image", "multimodal")


class _Reached(Exception):
    """The first step is reached, and none of it was computed."""


class NoCopyToHost(TorchDispatchMode):
    """Fails if a tensor of the accelerator is copied to the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.device.type == "cpu":
            taken = [each for each in args if isinstance(each, Tensor) and each.device.type == DEVICE.type]
            assert not taken, f"{function} copies to the host"
        return result


def first_step(words: list[str], method: str, monkeypatch) -> tuple[Recommender, Batch]:
    """Return the recommender and the first piece of the first step of a run on the CPU."""
    caught: list[tuple[Recommender, Batch]] = []

    def catch(trainer: Trainer, pieces: list[Batch], read: list[tuple[Tensor, ...]]) -> Tensor:
        piece = pieces[0].to(torch.device("cpu"), trainer.evaluator.features, read[0])
        caught.append((trainer.recommender, piece))
        raise _Reached

    monkeypatch.setattr(Trainer, "_step", catch)
    with pytest.raises(_Reached):
        run(words, method)
    return caught[0]


def loss_without_values(recommender: Recommender, batch: Batch) -> Tensor:
    """Run forward pass and loss of a recommender on the fake accelerator."""
    with FakeTensorMode() as mode:

        def there(tensor: Tensor, device: torch.device = DEVICE) -> Tensor:
            fake = mode.from_tensor(tensor)
            return fake.detach().to(device).requires_grad_(tensor.requires_grad)

        state = {name: there(each) for name, each in [*recommender.named_parameters(), *recommender.named_buffers()]}
        moved = {
            field.name: there(value)
            for field in fields(batch)
            if isinstance(value := getattr(batch, field.name), Tensor) and field.name != "items"
        }
        batch = replace(batch, **moved, items=there(batch.items, torch.device("cpu")))
        groups = tuple(tuple(map(there, group)) for group in batch.inputs.groups)
        order = None if batch.inputs.order is None else there(batch.inputs.order)
        batch = replace(batch, inputs=Inputs(groups, order))
        with NoCopyToHost():
            return torch.func.functional_call(recommender, state, (batch,))


@pytest.fixture
def first(domain, backbones, tmp_path, monkeypatch):
    """Return a function that gives the first step of a run with an item tower, a method, an objective and flags."""

    def of(tower: str, method: str, objective: str, *more: str) -> tuple[Recommender, Batch]:
        encoders = ["--text_encoder", str(backbones["bert"]), "--image_encoder", str(backbones["vit"])]
        given = ["--dataset", str(domain), *encoders, *TINY.split(), "--output", str(tmp_path / "run")]
        chosen = [
            "--item_tower",
            tower,
            "--objective",
            objective,
            *words_of(small_of(OBJECTIVES.get(objective).Options)),
        ]
        return first_step([*given, *chosen, *small_flags(method), *more], method, monkeypatch)

    return of


@pytest.mark.parametrize("objective", OBJECTIVES.names())
def test_no_objective_waits_for_the_accelerator(first, objective):
    assert loss_without_values(*first("id", "full", objective)).device == DEVICE


def test_texts_in_groups_by_length_do_not_wait_for_the_accelerator(first, monkeypatch):
    monkeypatch.setattr("transrec.data.groups.by_length", lambda lengths, _: np.array_split(np.arange(len(lengths)), 3))
    recommender, batch = first("text", "houlsby", "in_batch", "--cached", "no")
    assert len(batch.inputs.groups) == 3
    assert loss_without_values(recommender, batch).device == DEVICE


@pytest.mark.parametrize(
    ("tower", "method", "cached"),
    [("text", "houlsby", "no"), ("image", "lora", "no"), ("vector", "full", "no"), ("multimodal", "iisan", "yes")],
)
def test_no_tower_waits_for_the_accelerator(first, tmp_path, tower, method, cached):
    more = ["--state_cache", str(tmp_path / "states")] if cached == "yes" else []
    more += ["--cached", cached] if tower not in ("id", "vector") else []
    assert loss_without_values(*first(tower, method, "in_batch", *more)).device == DEVICE


@pytest.mark.parametrize(("kind", "mask"), [("mae", "0.75"), ("clip", "0"), ("dinov2", "0")])
def test_no_vision_transformer_waits_for_the_accelerator(first, backbones, tmp_path, kind, mask):
    folder = backbones.get(kind, tmp_path / kind)
    if not folder.exists():
        save_vision_transformer(kind, folder)
    more = ["--image_encoder", str(folder), "--mask_ratio", mask]
    assert loss_without_values(*first("image", "houlsby", "in_batch", "--cached", "no", *more)).device == DEVICE


@pytest.mark.long
@pytest.mark.parametrize(("tower", "method"), product(TOWERS, PACKAGED))
def test_no_method_waits_for_the_accelerator(first, tower, method):
    assert loss_without_values(*first(tower, method, "in_batch", "--cached", "no")).device == DEVICE


WAITS = {
    "item": lambda users, batch: users.sum() * users.sum().item(),
    "tolist": lambda users, batch: users.sum() * len(users.tolist()),
    "branch": lambda users, batch: users.sum() if users.sum() > 0 else -users.sum(),
    "nonzero": lambda users, batch: users[:, 1:][batch.mask.nonzero(as_tuple=True)].sum(),
    "mask": lambda users, batch: users[:, 1:][batch.mask].sum(),
    "copy": lambda users, batch: users.cpu().sum(),
    "devices": lambda users, batch: users.sum() + torch.ones(3).sum(0, keepdim=True),
}


def test_an_objective_that_waits_is_found(first):
    recommender, batch = first("id", "full", "bce")
    for way, waits in WAITS.items():
        recommender.objective = lambda embeddings, batch, _, waits=waits: waits(embeddings[batch.sequences - 1], batch)
        with pytest.raises((RuntimeError, AssertionError, NotImplementedError)):
            loss_without_values(recommender, batch)
            pytest.fail(f"{way} is not found")
