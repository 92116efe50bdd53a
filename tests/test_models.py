"""The view of backbones, SASRec, objectives."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, Dinov2Config

from transrec.data.batches import Batch
from transrec.errors import TransrecError
from transrec.models.backbone import build_backbone, load_backbone, view
from transrec.models.objectives.bce import BCEObjective
from transrec.models.objectives.cpc import CPCObjective
from transrec.models.objectives.in_batch import InBatchObjective
from transrec.models.user_encoders.sasrec import SASRec


class Zero(nn.Module):
    """Replaces the output of the module that it wraps by zeros."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *inputs):
        return torch.zeros_like(self.inner(*inputs))


@pytest.fixture(params=["bert", "roberta", "sasrec"])
def stack(request, backbones):
    torch.manual_seed(0)
    model = SASRec(16, 6, 3, 2, 0.0) if request.param == "sasrec" else load_backbone(backbones[request.param])
    return view(model.eval())


def block_output(block, x):
    """Return a block's output on x [B, L, D] without any mask."""
    if "SASRec" in type(block.module).__name__:
        length = x.shape[1]
        return block.module(x, torch.zeros(1, 1, length, length))
    output = block.module(x)
    return output[0] if isinstance(output, tuple) else output


def test_sites_are_where_the_residual_is_added(stack):
    """With both sub-layer outputs erased, a post-LN block is exactly LayerNorm(LayerNorm(x))."""
    x = torch.randn(2, 5, stack.width)
    for block in stack.blocks:
        norms = [m for m in block.module.modules() if isinstance(m, nn.LayerNorm)]
        before = block_output(block, x)
        for sublayer in block.sublayers:
            sublayer.output.replace(Zero(sublayer.output.module))
        with torch.no_grad():
            torch.testing.assert_close(block_output(block, x), norms[1](norms[0](x)))
            assert not torch.allclose(before, block_output(block, x))


def test_projections_are_query_key_value(stack):
    """Doubling the query and halving the key keeps the logits; a zero value erases the output of attention."""
    x = torch.randn(2, 5, stack.width)
    block = stack.blocks[0]
    with torch.no_grad():
        for site in (block.query, block.key, block.value):
            if site.module.bias is not None:
                site.module.bias.zero_()
        before = block_output(block, x)
        block.query.module.weight.mul_(2)
        assert not torch.allclose(before, block_output(block, x))
        block.key.module.weight.mul_(0.5)
        torch.testing.assert_close(before, block_output(block, x))
        block.value.module.weight.zero_()
        attended = block.attention.projection.module
        expected = torch.zeros_like(x) if attended.bias is None else attended.bias.expand_as(x)
        caught = []
        handle = attended.register_forward_hook(lambda module, inputs, output: caught.append(output))
        block_output(block, x)
        handle.remove()
        torch.testing.assert_close(caught[0], expected)


class OldViTAttention(nn.Module):
    """The attention of image backbones from before projections were called q_proj, k_proj, v_proj and o_proj."""

    def __init__(self, width):
        super().__init__()
        self.attention = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width), "dropout": nn.Dropout(0.0)})

    def forward(self, x):
        query, key, value = (self.attention[name](x) for name in ("query", "key", "value"))
        return self.output["dropout"](self.output["dense"](F.scaled_dot_product_attention(query, key, value)))


class OldViTBlock(nn.Module):
    """A pre-LN block of that layout."""

    def __init__(self, width):
        super().__init__()
        self.attention = OldViTAttention(width)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, 2 * width)})
        self.output = nn.ModuleDict({"dense": nn.Linear(2 * width, width), "dropout": nn.Dropout(0.0)})
        self.layernorm_before, self.layernorm_after = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x):
        x = x + self.attention(self.layernorm_before(x))
        up = F.gelu(self.intermediate["dense"](self.layernorm_after(x)))
        return x + self.output["dropout"](self.output["dense"](up))


@pytest.fixture(params=["old ViT", "vit", "mae", "clip", "dinov2"])
def pre_ln_stack(request, backbones):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    if request.param == "old ViT":
        model = nn.ModuleDict({"layer": nn.ModuleList([OldViTBlock(32), OldViTBlock(32)])})
    elif request.param == "clip":
        model = build_backbone(CLIPVisionConfig(**sizes, intermediate_size=64), "image")
    elif request.param == "dinov2":
        model = build_backbone(Dinov2Config(**sizes, mlp_ratio=2), "image")
    else:
        model = load_backbone(backbones[request.param], "image")
    return view(model.eval())


def test_sites_of_pre_ln_blocks(pre_ln_stack):
    """With both outputs erased, only the residual stream is left; `stream` is the module that reads the stream."""
    x = torch.randn(2, 5, 32)

    def give(block):
        arguments = (x, None) if "CLIP" in type(block.module).__name__ else (x,)
        output = block.module(*arguments)
        return output[0] if isinstance(output, tuple) else output

    for block in pre_ln_stack.blocks:
        assert block.attention.norm is None and block.feed_forward.norm is None
        read = {}
        for name, sublayer in (("attention", block.attention), ("feed_forward", block.feed_forward)):
            for site in ("stream", "entry"):
                getattr(sublayer, site).module.register_forward_pre_hook(
                    lambda module, inputs, read=read, key=(name, site): read.update({key: inputs[0]})
                )
        with torch.no_grad():
            before = give(block)
            torch.testing.assert_close(read["attention", "stream"], x)
            norm = block.attention.stream.module
            torch.testing.assert_close(read["attention", "entry"], norm(x))
            after_attention = read["feed_forward", "stream"].clone()
            norm = block.feed_forward.stream.module
            torch.testing.assert_close(read["feed_forward", "entry"], norm(after_attention))
            assert not torch.allclose(after_attention, x)
            for sublayer in block.sublayers:
                sublayer.output.replace(Zero(sublayer.output.module))
            torch.testing.assert_close(give(block), x)
            assert not torch.allclose(before, x)


def test_view_refuses_what_is_no_stack():
    with pytest.raises(TransrecError, match="no list of transformer blocks"):
        view(nn.Linear(3, 3))
    with pytest.raises(TransrecError, match="query, key and value"):
        view(nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])}))


def test_sasrec_refuses_heads_that_do_not_divide():
    with pytest.raises(TransrecError, match="--heads 3"):
        SASRec(16, 6, 2, 3, 0.1)


@pytest.fixture
def example():
    """A batch with padding, repeated items and items shared between users, its embeddings and a user encoder."""
    torch.manual_seed(0)
    items = torch.tensor([3, 4, 7, 8, 9, 12])
    sequences = torch.tensor([[0, 0, 1, 2, 1], [0, 3, 4, 5, 2], [1, 1, 6, 3, 4], [0, 0, 0, 0, 2]])
    negatives = torch.tensor([[0, 0, 3, 4], [0, 1, 6, 6], [2, 2, 2, 5], [0, 0, 0, 0]])
    popularity = torch.rand(6)
    batch = Batch(items, sequences, negatives, popularity.log(), predictions=int((sequences[:, :-1] > 0).sum()))
    return batch, torch.randn(6, 16, requires_grad=True), SASRec(16, 4, 2, 2, 0.0)


def vectors(batch, embeddings, encoder):
    padded = torch.cat([torch.zeros(1, 16), embeddings])
    return encoder(padded[batch.sequences[:, :-1]], batch.mask)


def test_sasrec_objective(example):
    batch, embeddings, encoder = example
    users = vectors(batch, embeddings, encoder)
    expected = 0.0
    for u, t in batch.mask.nonzero().tolist():
        positive = users[u, t] @ embeddings[batch.sequences[u, t + 1] - 1]
        negative = users[u, t] @ embeddings[batch.negatives[u, t] - 1]
        expected = expected - F.logsigmoid(positive) - F.logsigmoid(-negative)
    torch.testing.assert_close(BCEObjective()(embeddings, batch, encoder), expected)


def test_cpc_objective(example):
    batch, embeddings, encoder = example
    users = vectors(batch, embeddings, encoder)
    expected = 0.0
    for u in (0, 1, 2):
        positive = users[u, -1] @ embeddings[batch.sequences[u, -1] - 1]
        negative = users[u, -1] @ embeddings[batch.negatives[u, -1] - 1]
        expected = expected - F.logsigmoid(positive) - F.logsigmoid(-negative)
    torch.testing.assert_close(CPCObjective()(embeddings, batch, encoder), expected)


def test_in_batch_objective_equals_its_definition_over_slots(example):
    """Each slot is a column, as in docs/protocol.md, with -1e4 for masked slots."""
    batch, embeddings, encoder = example
    users = vectors(batch, embeddings, encoder)
    slots = batch.sequences.flatten().tolist()
    width = batch.sequences.shape[1]
    expected = 0.0
    for u, t in batch.mask.nonzero().tolist():
        own = set(batch.sequences[u].tolist())
        target = u * width + t + 1
        logits = []
        for number, code in enumerate(slots):
            if code == 0 or (code in own and number != target):
                logits.append(torch.tensor(-1e4))
            else:
                logits.append(users[u, t] @ embeddings[code - 1] - batch.log_popularity[code - 1])
        expected = expected + F.cross_entropy(torch.stack(logits)[None], torch.tensor([target]))
    loss = InBatchObjective()(embeddings, batch, encoder)
    torch.testing.assert_close(loss, expected)
    expected_gradient = torch.autograd.grad(expected, embeddings)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, embeddings)[0], expected_gradient)


def test_in_batch_loss_of_a_lone_user_is_zero(example):
    batch, embeddings, encoder = example
    alone = Batch(batch.items, batch.sequences[:1], batch.negatives[:1], batch.log_popularity, predictions=2)
    assert InBatchObjective()(embeddings, alone, encoder).item() == pytest.approx(0, abs=1e-6)


def test_objectives_start_near_chance():
    """Untrained, almost orthogonal embeddings: BCE is near 2 log 2, softmax near the log of the candidates."""
    torch.manual_seed(0)
    batch = Batch(
        torch.arange(1, 41), torch.arange(1, 41).view(8, 5), torch.ones(8, 4).long(), torch.zeros(40), predictions=32
    )
    embeddings, encoder = 1e-3 * torch.randn(40, 16), SASRec(16, 4, 2, 2, 0.0)
    assert BCEObjective()(embeddings, batch, encoder).item() / 32 == pytest.approx(2 * math.log(2), abs=0.01)
    # One target and the 35 items of other users.
    assert InBatchObjective()(embeddings, batch, encoder).item() / 32 == pytest.approx(math.log(36), abs=0.01)
