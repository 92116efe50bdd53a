"""Items in groups by length: the cheapest of all groupings, with the numbers of one padded batch."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import run

from transrec.data.catalog import Tokens
from transrec.data.features import AttributeFeatures, IdFeatures, ImageFeatures, MultimodalFeatures, TextFeatures
from transrec.data.groups import by_length, group_inputs
from transrec.finished import load_run
from transrec.modalities.text import TextTower
from transrec.models.backbone import load_backbone

COUNT, LONGEST = 40, 12


@pytest.fixture
def tokens():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, LONGEST + 1, COUNT)
    ids = rng.integers(10, 30, (COUNT, LONGEST)) * (np.arange(LONGEST) < lengths[:, None])
    return Tokens(ids.astype(np.int32), lengths.astype(np.int32))


def cost(lengths, groups, overhead):
    return sum(len(group) * lengths[group].max() + overhead for group in groups)


@pytest.mark.parametrize("seed", range(20))
def test_no_grouping_costs_less(seed):
    rng = np.random.default_rng(seed)
    lengths, overhead = rng.integers(1, 9, rng.integers(1, 30)), float(rng.choice([0.0, 0.5, 4.0, 10.0, 100.0]))
    groups = by_length(lengths, overhead)
    assert sorted(np.concatenate(groups)) == list(range(len(lengths)))
    distinct = np.unique(lengths)
    every = (
        [np.flatnonzero(np.isin(lengths, part)) for part in np.split(distinct, cuts)]
        for size in range(len(distinct))
        for cuts in itertools.combinations(range(1, len(distinct)), size)
    )
    assert cost(lengths, groups, overhead) == min(cost(lengths, each, overhead) for each in every)


def test_little_of_what_a_backbone_reads_is_padding():
    lengths = np.random.default_rng(0).integers(3, 31, 1000)
    groups = by_length(lengths, 100.0)
    assert cost(lengths, groups, 0) < 1.06 * lengths.sum() < 1.06 * 0.6 * cost(lengths, [np.arange(1000)], 0)


@pytest.mark.parametrize("texts", [1, 2])
def test_groups_give_the_embeddings_and_gradients_of_one_padded_batch(tokens, backbones, texts):
    tower = TextTower(load_backbone(backbones["bert"]), 16, "mean", texts)
    parts = [TextFeatures(tokens, rows) for rows in (np.arange(COUNT), np.arange(COUNT)[::-1])][:texts]
    features = parts[0] if texts == 1 else AttributeFeatures(parts)
    items, results = torch.randperm(COUNT)[:25] + 1, []
    weights = torch.randn(25, 16)
    for features.call_overhead_tokens in (1e6, 0.0):
        inputs = group_inputs(features, items)
        embeddings = inputs.encoded(tower)
        tower.zero_grad()
        (embeddings * weights).sum().backward()
        results.append(
            (len(inputs.groups), embeddings.detach(), [p.grad for p in tower.parameters() if p.grad is not None])
        )
    (one, padded, padded_gradients), (several, grouped, grouped_gradients) = results
    assert one == 1
    assert several > 5
    torch.testing.assert_close(grouped, padded, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grouped_gradients, padded_gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("variant", ["paper", "published"])
def test_what_reads_padding_depends_on_no_batch(flags, tmp_path, variant):
    """The adapters of the published K-Adapter attend to padding, so texts are padded to --title_tokens, as there."""
    results = []
    for size in ("256", "1"):
        words = [*flags, "--epochs", "1", "--dropout", "0", "--title_tokens", "20", "--item_size", "12"]
        words += ["--variant", variant, "--eval_batch", size, "--output", str(tmp_path / size)]
        run(words, "kadapter")
        finished = load_run(tmp_path / size)
        results.append(finished.embed(finished.ids))
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)


def test_what_is_read_ahead_comes_in_one_piece(tokens):
    text = TextFeatures(tokens, np.arange(COUNT))
    text.call_overhead_tokens = 0.0
    items = torch.arange(1, COUNT + 1)
    read = torch.zeros(COUNT, 3, 4, 4, dtype=torch.uint8)
    image = ImageFeatures(SimpleNamespace(), np.arange(COUNT))
    assert len(group_inputs(MultimodalFeatures([text, IdFeatures()]), items).groups) > 1
    (inputs,) = group_inputs(MultimodalFeatures([text, image]), items, ((), (read,))).groups
    assert inputs[-1] is read
