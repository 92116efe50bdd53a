"""All user encoders of the package: causality, padding, runs, and methods inserted into them."""

import pytest
import torch
from conftest import FEW_STEPS, fitting, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from transrec import methods
from transrec.errors import TransrecError
from transrec.finished import load_run
from transrec.models.backbone import view
from transrec.models.user_encoders import USER_ENCODERS
from transrec.models.user_encoders.gru4rec import GRU4Rec
from transrec.models.user_encoders.ligr import LiGR
from transrec.models.user_encoders.mean import Mean
from transrec.models.user_encoders.sasrec import SASRec

NAMES = USER_ENCODERS.names()
WITH_BLOCKS = ("ligr", "sasrec")
LENGTH = 6


def encoder(name: str, width: int = 16) -> nn.Module:
    kind = USER_ENCODERS.get(name)
    return kind(width, LENGTH, **kind.Options().as_dict()).eval()


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31), padding=st.integers(0, LENGTH - 1), changed=st.integers(0, LENGTH - 1))
def test_no_position_sees_a_later_one_or_padding(name, seed, padding, changed):
    torch.manual_seed(seed)
    encode = encoder(name)
    items, mask = torch.randn(2, LENGTH, 16), torch.arange(LENGTH).expand(2, -1) >= padding
    other = items.clone()
    other[:, changed:] = torch.randn(2, LENGTH - changed, 16)
    other[:, :padding] = 1e3
    with torch.no_grad():
        first, second = encode(items, mask), encode(other, mask)
    assert first.shape == items.shape
    torch.testing.assert_close(first[:, padding:changed], second[:, padding:changed], atol=1e-5, rtol=0)
    if changed >= padding:
        assert (first[:, changed:] - second[:, changed:]).abs().max() > 1e-3, "what it may see, it sees"


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_padding_alone_are_finite(name):
    encode = encoder(name).train()
    items = torch.randn(2, LENGTH, 16, requires_grad=True)
    output = encode(items, torch.zeros(2, LENGTH))
    output.sum().backward()
    assert torch.isfinite(output).all() and torch.isfinite(items.grad).all()


@pytest.mark.parametrize("name", ["gru4rec", "mean"])
def test_where_a_sequence_begins_does_not_matter(name):
    encode, items = encoder(name), torch.randn(1, LENGTH, 16)
    mask = torch.arange(LENGTH)[None] >= 2
    torch.testing.assert_close(encode(items, mask)[:, 2:], encode(items[:, 2:], mask[:, 2:]))


def test_mean_is_the_mean_of_the_items_so_far():
    items = torch.randn(1, 4, 3)
    vectors = Mean(3, 4)(items, torch.tensor([[False, True, True, True]]))
    torch.testing.assert_close(vectors[0, 3], items[0, 1:].mean(0))
    torch.testing.assert_close(vectors[0, 1], items[0, 1])


def test_ligr_blocks_by_their_formula():
    torch.manual_seed(0)
    block = LiGR(8, 5, 1, 1, 0.0).blocks[0].eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(5, 8)
    linear = nn.functional.linear

    def norm(module, values):
        centred = values - values.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * module.weight + module.bias

    def gated(module, inner, residual):
        return residual + torch.sigmoid(module.residual_gate(residual)) * linear(
            inner, module.dense.weight, module.dense.bias
        )

    read = norm(block.attention_norm, x)
    query, key, value = (linear(read, getattr(block.attention, name).weight) for name in ("query", "key", "value"))
    causal = torch.ones(5, 5).tril() == 0
    attended = (query @ key.T / 8**0.5).masked_fill(causal, -torch.inf).softmax(-1) @ value
    y = gated(block.attention_output, attended, x)
    read = norm(block.feed_forward_norm, y)
    gate, up = (linear(read, part.weight) for part in (block.gate, block.up))
    expected = gated(block.feed_forward_output, gate * torch.sigmoid(gate) * up, y)
    torch.testing.assert_close(block(x[None], torch.where(causal, -1e9, 0.0)[None, None])[0], expected)


def test_sites_of_ligr_are_those_of_pre_ln_blocks():
    for block in view(LiGR(8, 5, 2, 2, 0.0)).blocks:
        inside = block.module
        attention, feed_forward = block.attention, block.feed_forward
        assert attention.projection.module is inside.attention_output.dense
        assert feed_forward.projection.module is inside.feed_forward_output.dense
        assert (attention.output.module, feed_forward.output.module) == (
            inside.attention_output.dropout,
            inside.feed_forward_output.dropout,
        )
        assert (attention.stream.module, feed_forward.stream.module) == (
            inside.attention_norm,
            inside.feed_forward_norm,
        )
        assert attention.norm is None and feed_forward.norm is None and feed_forward.entry.module is inside.up


# Methods run with their default variants: pfeiffer's published and adapterhub variants need post-LN blocks.
USER_METHODS = [name for name in methods.names() if issubclass(methods.get(name).Options, methods.InsertOptions)]


@pytest.mark.parametrize("name", [name for name in USER_METHODS if name != "prompt"])
def test_methods_go_into_ligr_and_see_no_later_item(name, flags, tmp_path):
    words = [*flags, *FEW_STEPS, "--user_encoder", "ligr", "--insert", "user", "--epochs", "1"]
    result = run([*words, "--output", str(tmp_path)], name)
    assert result["trainable_parameters"] > 0
    recommender = load_run(tmp_path)
    items, mask = torch.randn(1, LENGTH, 16), torch.ones(1, LENGTH).bool()
    later = items.clone()
    later[:, 4:] = 2.0
    first, second = (recommender.user_encoder(given, mask) for given in (items, later))
    torch.testing.assert_close(first[:, :4], second[:, :4], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITH_BLOCKS])
def test_methods_say_where_there_are_no_blocks(name, flags, tmp_path):
    words = [*flags, *FEW_STEPS, "--user_encoder", name, "--output", str(tmp_path / "run"), "--epochs", "1"]
    with pytest.raises(TransrecError, match="has no transformer blocks to insert into; use --insert item or --us"):
        run(words, "houlsby")
    assert run([*words, "--insert", "item"], "houlsby")["trainable_parameters"] > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tower", ["id", "multimodal"])
def test_a_run_of_each_over_ids_and_fused_items(name, tower, flags, backbones, tmp_path):
    words = [*flags, *FEW_STEPS, "--item_tower", tower, "--user_encoder", name, "--epochs", "1"]
    words += ["--image_encoder", str(backbones["vit"]), "--image_workers", "0", "--output", str(tmp_path)]
    run(fitting(words), "frozen" if tower == "multimodal" else "full")
    kind = type(load_run(tmp_path).user_encoder)
    assert kind is USER_ENCODERS.get(name)


@pytest.fixture
def recbole():
    """RecBole's sequential recommenders, over a stub dataset that only reports 20 items."""
    pytest.importorskip("recbole", reason="RecBole is not installed")
    from recbole.model.sequential_recommender import gru4rec, sasrec

    class Config(dict):
        def __getitem__(self, key):
            return self.get(key)

    class Dataset:
        def num(self, field):
            return 21

    settings = Config(
        USER_ID_FIELD="user", ITEM_ID_FIELD="item", LIST_SUFFIX="_list", ITEM_LIST_LENGTH_FIELD="length",
        NEG_PREFIX="neg_", MAX_ITEM_LIST_LENGTH=LENGTH, device="cpu", n_layers=2, n_heads=2, hidden_size=16,
        inner_size=64,
        hidden_dropout_prob=0.0, attn_dropout_prob=0.0, hidden_act="relu", layer_norm_eps=1e-6,
        initializer_range=0.5,
        loss_type="CE", embedding_size=16, num_layers=2, dropout_prob=0.0,
    )  # fmt: skip
    kinds = {"sasrec": sasrec.SASRec, "gru4rec": gru4rec.GRU4Rec}
    return {name: kind(settings, Dataset()).eval() for name, kind in kinds.items()}


@pytest.mark.parametrize("length", [1, 3, LENGTH])
def test_sasrec_of_recbole(recbole, length):
    theirs, ours = recbole["sasrec"], SASRec(16, LENGTH, 2, 2, 0.0).eval()
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, nn.Linear):
                module.bias.zero_()
        # RecBole's positions count from the first item, ours from the last.
        ours.position_embedding.weight.copy_(theirs.position_embedding.weight.roll(LENGTH - length, 0))
        ours.layer_norm.load_state_dict(theirs.LayerNorm.state_dict())
        for block, layer in zip(ours.blocks, theirs.trm_encoder.layer, strict=True):
            attention, feed_forward = layer.multi_head_attention, layer.feed_forward
            for name in ("query", "key", "value"):
                getattr(block.attention, name).weight.copy_(getattr(attention, name).weight)
            block.attention_output.dense.weight.copy_(attention.dense.weight)
            block.attention_output.layer_norm.load_state_dict(attention.LayerNorm.state_dict())
            block.up.load_state_dict(feed_forward.dense_1.state_dict())
            block.feed_forward_output.dense.load_state_dict(feed_forward.dense_2.state_dict())
            block.feed_forward_output.layer_norm.load_state_dict(feed_forward.LayerNorm.state_dict())
        sequence = torch.randint(1, 21, (3, length))
        behind = nn.functional.pad(sequence, (0, LENGTH - length))
        in_front = nn.functional.pad(sequence, (LENGTH - length, 0))
        expected = theirs(behind, torch.full((3,), length))
        vectors = ours(theirs.item_embedding(in_front), in_front > 0)
    torch.testing.assert_close(vectors[:, -1], expected, atol=1e-5, rtol=1e-5)


def test_ligr_of_rectools():
    """The blocks equal those that eSASRec's authors published; the final LayerNorm and the missing biases are ours."""
    theirs = pytest.importorskip("rectools.models.nn.transformers.ligr", reason="RecTools is not installed")
    stack, ours = theirs.LiGRLayers(2, 16, 2, 0.0).eval(), LiGR(16, LENGTH, 2, 2, 0.0).eval()
    with torch.no_grad():
        for block, layer in zip(ours.blocks, stack.transformer_blocks, strict=True):
            attention, feed_forward = layer.multi_head_attn, layer.feed_forward
            attention.in_proj_bias.zero_()
            for name, weight in zip(("query", "key", "value"), attention.in_proj_weight.chunk(3), strict=True):
                getattr(block.attention, name).weight.copy_(weight)
            block.attention_output.dense.load_state_dict(attention.out_proj.state_dict())
            block.attention_output.residual_gate.load_state_dict(layer.gating_linear_1.state_dict())
            block.gate.load_state_dict(feed_forward.ff_linear_1.state_dict())
            block.up.load_state_dict(feed_forward.ff_linear_3.state_dict())
            block.feed_forward_output.dense.weight.copy_(feed_forward.ff_linear_2.weight)
            block.feed_forward_output.dense.bias.zero_()
            block.feed_forward_output.residual_gate.load_state_dict(layer.gating_linear_2.state_dict())
            layer.layer_norm_1.eps = layer.layer_norm_2.eps = block.attention_norm.eps
        items, later = torch.randn(3, LENGTH, 16), torch.ones(LENGTH, LENGTH).tril() == 0
        expected = stack(items + ours.position_embedding.weight, torch.ones(3, LENGTH), later, None)
        vectors = ours(items, torch.ones(3, LENGTH, dtype=torch.bool))
    torch.testing.assert_close(vectors, ours.layer_norm(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 3, LENGTH])
def test_gru4rec_of_recbole(recbole, length):
    theirs, ours = recbole["gru4rec"], GRU4Rec(16, LENGTH, 16, 2, 0.0).eval()
    with torch.no_grad():
        for name, parameter in ours.gru.named_parameters():
            parameter.copy_(getattr(theirs.gru_layers, name) if "weight" in name else torch.zeros_like(parameter))
        ours.projection.load_state_dict(theirs.dense.state_dict())
        sequence = torch.randint(1, 21, (3, length))
        expected = theirs(nn.functional.pad(sequence, (0, LENGTH - length)), torch.full((3,), length))
        in_front = nn.functional.pad(sequence, (LENGTH - length, 0))
        vectors = ours(theirs.item_embedding(in_front), in_front > 0)
    torch.testing.assert_close(vectors[:, -1], expected, atol=1e-5, rtol=1e-5)
