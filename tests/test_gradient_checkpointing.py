"""Blocks that are recomputed in the backward pass: the same gradients with fewer tensors kept."""

import pytest
import torch
from test_methods import RATES, apply, make_encoder
from torch.autograd.graph import saved_tensors_hooks

from transrec import methods
from transrec.models.backbone import recompute_blocks
from transrec.models.objectives.bce import BCEObjective
from transrec.models.recommender import Recommender
from transrec.models.user_encoders.sasrec import SASRec


def inputs_of(kind):
    torch.manual_seed(1)
    if kind == "vit":
        return (torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8),)
    mask = (torch.arange(7) < torch.tensor([7, 3, 5, 7])[:, None]).long()
    return torch.randint(5, 50, (4, 7)) * mask, mask


def gradients(encoder, inputs):
    """Return the gradients of all trained parameters, and how many numbers were kept for the backward pass."""
    saved = []
    encoder.zero_grad(set_to_none=True)
    torch.manual_seed(2)
    with saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()) or tensor, lambda tensor: tensor):
        loss = encoder(*inputs).square().sum()
    loss.backward()
    return {name: p.grad for name, p in encoder.named_parameters() if p.requires_grad}, sum(saved)


@pytest.mark.parametrize("method", ["full", "lora", "houlsby", "parallel"])
@pytest.mark.parametrize("kind", ["bert", "llama", "vit"])
def test_gradients_are_the_same(kind, method, backbones):
    torch.manual_seed(0)
    recommender = Recommender(make_encoder(kind, backbones), SASRec(16, 6, 2, 2, 0.1), BCEObjective())
    options = {} if method == "full" else {"insert": "item"}
    if method == "full":
        methods.apply(recommender, method, methods.get(method).Options(), RATES, True, backbone_dropout=True)
    else:
        apply(recommender, method, True, **options)
    encoder, inputs = recommender.train().item_encoder, inputs_of(kind)
    # Parameters that start at zero would hide the gradients of those before them.
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    before, saved = gradients(encoder, inputs)
    with torch.no_grad():
        output = encoder.eval()(*inputs)
    recompute_blocks(encoder.train().backbone)
    after, fewer = gradients(encoder, inputs)
    assert before.keys() == after.keys() and fewer < saved / 2
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, atol=1e-6, rtol=1e-6)
    assert any(gradient.any() for name, gradient in after.items() if "backbone" in name)
    with torch.no_grad():
        assert torch.equal(encoder.eval()(*inputs), output)
