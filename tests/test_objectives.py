"""Objectives against plain implementations, values and gradients, and how negatives are drawn."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import fitting, run
from hypothesis import given
from hypothesis import strategies as st
from test_training import assert_same_run
from torch.nn import functional as F

from transrec.data.batches import POPULARITY_SCALE, Batch, Sampler, Sampling, TrainingBatches
from transrec.data.dataset import load_dataset
from transrec.errors import TransrecError
from transrec.finished import load_run
from transrec.models.objectives import OBJECTIVES
from transrec.models.objectives.softmax import Terms, cross_entropy, log_sums
from transrec.models.user_encoders.sasrec import SASRec
from transrec.settings import parse
from transrec.training.ranks import read_ranks

FIELDS = {"dtype": torch.float64}


@dataclass
class Example:
    """A batch of a dataset, float64 embeddings [n, d] of all items and a user encoder."""

    batch: Batch
    items: torch.Tensor
    encoder: SASRec

    def positions(self) -> list[tuple[int, int, torch.Tensor, int]]:
        """Return user, position, user vector and target item (from 0) of each position that predicts."""
        numbers = torch.cat([torch.zeros(1, dtype=torch.long), self.batch.items])[self.batch.sequences]
        inputs = F.pad(self.items, (0, 0, 1, 0))[numbers[:, :-1]]
        vectors = self.encoder(inputs, self.batch.mask)
        return [(u, t, vectors[u, t], int(numbers[u, t + 1]) - 1) for u, t in self.batch.mask.nonzero().tolist()]

    def drawn(self, codes: torch.Tensor) -> list[int]:
        """Return the item numbers (from 0) that codes of a batch stand for, without padding."""
        return [int(self.batch.items[code - 1]) - 1 for code in codes.flatten().tolist() if code]

    def own(self, user: int) -> set[int]:
        return set(self.drawn(self.batch.sequences[user]))


@pytest.fixture
def example(domain) -> Callable[..., Example]:
    def make(objective, step: int = 0) -> Example:
        split = load_dataset(domain, 6, 5).split
        batches = TrainingBatches(split, 9, objective.negatives, objective.last_only, 3, sampling=objective.sampling)
        (batch,) = batches.pieces_of(1, step)
        torch.manual_seed(1)
        items = torch.randn(split.item_count, 8, **FIELDS, requires_grad=True)
        return Example(batch, items, SASRec(8, 6, 1, 2, 0.0).double())

    return make


def bce(case: Example, negatives: int) -> torch.Tensor:
    loss = 0.0
    for u, t, user, target in case.positions():
        loss = loss - F.logsigmoid(user @ case.items[target])
        for item in case.drawn(case.batch.negatives.view(*case.batch.mask.shape, -1)[u, t]):
            loss = loss - F.logsigmoid(-(user @ case.items[item]))
    return loss


def bpr(case: Example, negatives: int) -> torch.Tensor:
    loss = 0.0
    for u, t, user, target in case.positions():
        for item in case.drawn(case.batch.negatives.view(*case.batch.mask.shape, -1)[u, t]):
            loss = loss - torch.log(torch.sigmoid(user @ case.items[target] - user @ case.items[item])) / negatives
    return loss


def gbce(case: Example, negatives: int, calibration: float) -> torch.Tensor:
    share, loss = negatives / (len(case.items) - 1), 0.0
    power = share * (calibration * (1 - 1 / share) + 1 / share)
    for u, t, user, target in case.positions():
        loss = loss - torch.log(torch.sigmoid(user @ case.items[target]) ** power)
        for item in case.drawn(case.batch.negatives.view(*case.batch.mask.shape, -1)[u, t]):
            loss = loss - torch.log(1 - torch.sigmoid(user @ case.items[item]))
    return loss / (negatives + 1)


def softmax(case: Example, temperature: float = 1.0, normalise: bool = False) -> torch.Tensor:
    scale = (lambda x: x / x.norm(dim=-1, keepdim=True)) if normalise else (lambda x: x)
    items, loss = scale(case.items), 0.0
    for _, _, user, target in case.positions():
        loss = loss - F.log_softmax(items @ scale(user) / temperature, 0)[target]
    return loss


def sampled(case: Example, chances: torch.Tensor | None, temperature: float = 1.0, normalise: bool = False):
    """Return the loss of `sampled_softmax`, given the items' probabilities float64 [n], or None for no correction."""
    scale = (lambda x: x / x.norm(dim=-1, keepdim=True)) if normalise else (lambda x: x)
    items, loss = scale(case.items), 0.0
    for u, t, user, target in case.positions():
        own = case.own(u)
        if len(case.batch.shared_negatives):
            drawn, outside = case.drawn(case.batch.shared_negatives), 1.0
            count = len(drawn)
        else:
            drawn = case.drawn(case.batch.negatives[u, t])
            outside = 1 - sum(float(chances[item]) for item in own) if chances is not None else 1.0
            count = case.batch.negatives.shape[-1]
        total = score = torch.exp(items[target] @ scale(user) / temperature)
        for item in drawn:
            if item not in own:
                often = count * chances[item] / outside if chances is not None else 1.0
                total = total + torch.exp(items[item] @ scale(user) / temperature) / often
        loss = loss - torch.log(score / total)
    return loss


def popularity(domain, power: float) -> torch.Tensor:
    """Return drawing probabilities by interactions to a power, rounded like the weights of the sampler."""
    weights = torch.from_numpy(load_dataset(domain, 6, 5).split.train_counts()[1:]).double() ** power
    weights = (weights * POPULARITY_SCALE).round()
    return weights / weights.sum()


CASES = {
    "bce": ("bce", {}, lambda case, _: bce(case, 1)),
    "bce, 3": ("bce", {"negatives": 3}, lambda case, _: bce(case, 3)),
    "bpr": ("bpr", {}, lambda case, _: bpr(case, 1)),
    "bpr, 4": ("bpr", {"negatives": 4}, lambda case, _: bpr(case, 4)),
    "gbce": ("gbce", {"negatives": 5, "calibration": 0.75}, lambda case, _: gbce(case, 5, 0.75)),
    "gbce, 1": ("gbce", {"negatives": 1, "calibration": 0.0}, lambda case, _: bce(case, 1) / 2),
    "softmax": ("softmax", {}, lambda case, _: softmax(case)),
    "softmax, cosine": ("softmax", {"normalise": True, "temperature": 0.2}, lambda case, _: softmax(case, 0.2, True)),
    "sampled": ("sampled_softmax", {"negatives": 20}, lambda case, _: sampled(case, torch.full((131,), 1 / 131))),
    "sampled, plain": ("sampled_softmax", {"negatives": 20, "logq": False}, lambda case, _: sampled(case, None)),
    "sampled, popularity": (
        "sampled_softmax",
        {"negatives": 20, "sampler": "popularity", "popularity_power": 0.5, "temperature": 0.5},
        lambda case, domain: sampled(case, popularity(domain, 0.5), 0.5),
    ),
    "sampled, in batch, cosine": (
        "sampled_softmax",
        {"negatives": 20, "sampler": "in_batch", "normalise": True, "temperature": 0.1},
        lambda case, domain: sampled(case, popularity(domain, 1.0), 0.1, True),
    ),
    "sampled, position": (
        "sampled_softmax",
        {"negatives": 7, "negatives_per": "position", "sampler": "popularity", "popularity_power": 1.0},
        lambda case, domain: sampled(case, popularity(domain, 1.0)),
    ),
    "sampled, position, in batch": (
        "sampled_softmax",
        {"negatives": 7, "negatives_per": "position", "sampler": "in_batch", "logq": False},
        lambda case, _: sampled(case, None),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients_are_those_of_plain_lines(example, domain, name, monkeypatch):
    # The objectives compute in float32; here they are compared with their formula, not with its rounding.
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)
    objective, flags, plain = CASES[name]
    loss_of = OBJECTIVES.get(objective)(**flags)
    case = example(loss_of)
    embeddings = case.items[case.batch.items - 1]
    batch = case.batch
    loss = loss_of(embeddings, batch, case.encoder)
    expected = plain(case, domain)
    parameters = [case.items, *case.encoder.parameters()]
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    for ours, theirs in zip(*(torch.autograd.grad(value, parameters) for value in (loss, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    assert loss > 0


def test_every_objective_of_the_package_has_a_plain_reference():
    held_elsewhere = {"cpc", "in_batch"}
    assert {objective for objective, _, _ in CASES.values()} | held_elsewhere == {*OBJECTIVES.names()}


def test_cpc_is_bce_of_the_last_position(example):
    loss_of = OBJECTIVES.get("cpc")()
    case = example(loss_of)
    expected = 0.0
    for u, t, user, target in case.positions():
        if t == 5:
            (negative,) = case.drawn(case.batch.negatives[u, t])
            expected = expected - F.logsigmoid(user @ case.items[target]) - F.logsigmoid(-user @ case.items[negative])
    loss = loss_of(case.items[case.batch.items - 1], case.batch, case.encoder)
    torch.testing.assert_close(loss, expected, check_dtype=False)


@pytest.mark.parametrize("items_at_a_time", [1, 7, 64, 150])
def test_softmax_in_chunks_is_softmax(items_at_a_time):
    torch.manual_seed(0)
    users, items = (torch.randn(size, 8, **FIELDS, requires_grad=True) for size in (33, 150))
    targets, weights = torch.randint(150, (33,)), torch.rand(33, **FIELDS)
    losses = cross_entropy(users, items, targets, items_at_a_time * 33 * 8)
    expected = F.cross_entropy(users @ items.T, targets, reduction="none")
    torch.testing.assert_close(losses, expected)
    gradients = [torch.autograd.grad((values * weights).sum(), (users, items)) for values in (losses, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_softmax_of_large_scores_is_finite():
    users = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    losses = cross_entropy(users, torch.tensor([[1.0], [-1.0], [0.5]]), torch.tensor([0, 0]), 1)
    assert losses.tolist() == [0.0, 2e4]
    assert torch.isfinite(torch.autograd.grad(losses.sum(), users)[0]).all()


@pytest.mark.parametrize("per", ["batch", "position"])
@pytest.mark.parametrize("weighted", [False, True])
def test_corrected_negatives_estimate_the_sum_over_all_items(per, weighted):
    """Averaged over samples, the sum of a sample's corrected scores equals the sum over items outside the sequence."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    items, user = torch.randn(40, 4), 0.7 * torch.randn(4)
    sampler = Sampler(40, rng.integers(0, 5, 40) if weighted else None)
    loss_of = OBJECTIVES.get("sampled_softmax")(negatives=50, negatives_per=per)
    sequences = torch.tensor([[3, 8]])
    scores, sums = torch.exp(items @ user), []
    for _ in range(400):
        batch = Batch(
            torch.arange(1, 41),
            sequences,
            torch.from_numpy(sampler.draw_outside(rng, sequences.numpy(), 50)).view(1, 1, 50),
            torch.zeros(40),
            predictions=1,
            shared_negatives=torch.from_numpy(sampler.draw(rng, 50)),
            log_chance=torch.from_numpy(sampler.log_chances),
        )
        loss = loss_of(items, batch, lambda x, mask: user.expand(*x.shape[:2], -1))
        sums.append(float(loss.exp() * scores[7] - scores[7]))
    outside = torch.from_numpy(np.isfinite(sampler.log_chances)) & ~torch.isin(torch.arange(1, 41), sequences)
    # The standard deviation of the mean of 400 samples is below 2 %.
    assert np.mean(sums) == pytest.approx(float(scores[outside].sum()), rel=0.06)


@given(st.integers(5, 20), st.integers(0, 2**31))
def test_weighted_negatives_are_outside_the_sequence(item_count, seed):
    rng = np.random.default_rng(seed)
    sequences = rng.integers(0, item_count, size=(6, 5))
    weights = rng.integers(0, 4, item_count)
    weights[rng.integers(item_count)] = 3
    drawn = Sampler(item_count, weights).draw_outside(rng, sequences, 2)
    assert drawn.shape == (6, 8) and drawn.max() <= item_count
    for row, items in zip(sequences, drawn, strict=True):
        left = [item for item in range(1, item_count + 1) if weights[item - 1] and item not in row]
        assert set(items.tolist()) <= (set(left) or {0})


def test_weighted_negatives_are_drawn_by_their_weights():
    weights = np.array([5, 0, 1, 2, 7, 4, 0, 3])
    sequences = np.repeat(np.array([[0, 5, 3, 5]]), 20_000, axis=0)
    drawn = Sampler(8, weights).draw_outside(np.random.default_rng(0), sequences)
    allowed = np.array([5, 0, 0, 2, 0, 4, 0, 3])
    # 60,000 draws: the standard deviation of a share is at most 0.002.
    np.testing.assert_allclose(np.bincount(drawn.ravel(), minlength=9)[1:] / drawn.size, allowed / 14, atol=0.01)
    alone = Sampler(8, weights)
    shares = np.bincount(alone.draw(np.random.default_rng(0), 60_000), minlength=9)[1:] / 60_000
    np.testing.assert_allclose(shares, weights / 22, atol=0.01)
    np.testing.assert_allclose(np.exp(alone.log_chances), weights / 22, atol=1e-6)


@pytest.mark.parametrize("power", [6.0, 400.0])
def test_large_powers_of_popularity_stay_within_64_bits(domain, power):
    split = load_dataset(domain, 6, 5).split
    counts = split.train_counts()[1:].astype(float)
    sampler = TrainingBatches(split, 13, 0, False, 1, 0, 1, 1, Sampling("popularity", power, 30))._sampler(counts)
    expected = (counts / counts.max()) ** power
    np.testing.assert_allclose(np.exp(sampler.log_chances), expected / expected.sum(), atol=1e-6)
    assert (sampler.weights[counts > 0] > 0).all()
    drawn = sampler.draw_outside(np.random.default_rng(0), np.ones((2000, 7), np.int64))
    assert drawn.min() >= 2 and drawn.max() <= split.item_count


@pytest.mark.parametrize("sampling", [Sampling("popularity", 0.5, 30), Sampling("in_batch", 1.0, 30)])
def test_ranks_and_pieces_share_the_negatives_of_a_batch(domain, sampling):
    split = load_dataset(domain, 6, 5).split

    def shared(rank, ranks, pieces, epoch=2):
        batches = TrainingBatches(split, 13, 0, False, 1, rank, ranks, pieces, sampling)
        return [[batch.items[batch.shared_negatives - 1].tolist() for batch in parts] for parts in batches.epoch(epoch)]

    whole = shared(0, 1, 1)
    assert all(len(negatives) == 30 for (negatives,) in whole)
    for rank in range(2):
        assert shared(rank, 2, 2) == [[negatives, negatives] for (negatives,) in whole]
    assert shared(0, 1, 1) == whole != shared(0, 1, 1, epoch=3)


def test_softmax_batches_hold_the_catalogue(domain):
    split = load_dataset(domain, 6, 5).split
    (batch,) = TrainingBatches(split, 8, 0, False, 0, sampling=Sampling(catalogue=True)).pieces_of(1, 0)
    (other,) = TrainingBatches(split, 8, 0, False, 0).pieces_of(1, 0)
    assert batch.items.tolist() == list(range(1, split.item_count + 1))
    assert torch.equal(batch.sequences, torch.cat([torch.zeros(1, dtype=torch.long), other.items])[other.sequences])


IDS = ["--item_tower", "id", "--batch_size", "20", "--epochs", "1", "--lr", "1e-2"]


@pytest.mark.parametrize("name", ["softmax", "sampled_softmax", "gbce"])
def test_a_run_over_ids_repeats_itself(flags, tmp_path, name):
    words = fitting([*flags, *IDS, "--objective", name, "--epochs", "2"])
    words += ["--negatives", "20"] if name == "sampled_softmax" else []
    result = run([*words, "--output", str(tmp_path / "one")])
    assert math.isfinite(result["test"]["HR@10"])
    run([*words, "--output", str(tmp_path / "two")])
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_softmax_over_a_constant_backbone(flags, tmp_path):
    words = [*flags, "--objective", "softmax", "--batch_size", "20", "--epochs", "1"]
    assert run([*words, "--output", str(tmp_path / "frozen")], "frozen")["test"]
    message = (
        r"--objective softmax: scores all 131 items in every step, and the text backbone would have to encode them"
    )
    with pytest.raises(TransrecError, match=message):
        run([*words, "--output", str(tmp_path / "full")], "full")
    with pytest.raises(TransrecError, match=r"each time \(--cached no\)"):
        run([*words, "--cached", "no", "--output", str(tmp_path / "uncached")], "frozen")
    assert not (tmp_path / "full").exists()


def test_normalised_scores_rank_by_cosine():
    """A long item embedding has the higher product but not the higher cosine."""
    items = torch.tensor([[1.0, 0.0], [3.0, 3.0]])
    by_cosine = OBJECTIVES.get("softmax")(normalise=True).scoring_embeddings(items)
    user = torch.tensor([1.0, 0.0])
    assert (items @ user).argmax() == 1 and (by_cosine @ user).argmax() == 0
    assert torch.equal(OBJECTIVES.get("softmax")().scoring_embeddings(items), items)


def test_scores_of_normalised_objectives_are_cosines(flags, tmp_path):
    more = ["--objective", "softmax", "--normalise", "--temperature", "0.05", "--batch_size", "20", "--epochs", "1"]
    run([*flags, *more, "--output", str(tmp_path)], "frozen")
    finished = load_run(tmp_path)
    (best, *_) = scores = finished.recommend(finished.ids[:3], k=len(finished.ids) - 3).scores
    assert -1.0001 <= scores[-1] < best <= 1.0001
    margins = read_ranks(tmp_path, "test")["margin"]
    assert np.abs(margins[np.isfinite(margins)]).max() <= 2.0001


def test_the_former_name_of_bce_goes_on_working(flags):
    settings = parse([*flags, "--objective", "sasrec"], "full", {})
    assert settings.model.objective == "bce" and settings.as_dict()["negatives"] == 1
    stored = {name: value for name, value in settings.as_dict().items() if name != "negatives"}
    restored = type(settings).from_stored(stored | {"objective": "sasrec"})
    assert restored.model.objective == "bce" and restored.choice("objective").build().negatives == 1


@pytest.mark.parametrize(
    "words,expected",
    [
        (["--objective", "bce", "--negatives", "131"], "--negatives 131: the dataset has 131 items, one of them"),
        (["--objective", "sampled_softmax", "--negatives", "900"], "--negatives 900: the dataset has 131 items"),
        (["--objective", "bpr", "--negatives", "0"], "--negatives 0: must be at least 1"),
        (["--objective", "gbce", "--calibration", "2"], "--calibration 2.0: must be at least 0 and at most 1"),
        (
            ["--objective", "sampled_softmax", "--temperature", "0"],
            "--temperature 0: scores are divided by it; must be",
        ),
        (["--objective", "softmax", "--normalise", "--temperature", "-1"], "--temperature -1: scores are divided"),
        (
            ["--objective", "sampled_softmax", "--sampler", "zipf"],
            "--sampler: 'zipf' is none of uniform, popularity, in_batch",
        ),
    ],
)
def test_mistakes_are_one_line(command, words, expected):
    status, message = command(*words, method="frozen")
    assert status == 2 and expected in message, message


@pytest.mark.parametrize("memory", [1, 4 * 40 * 7, 4 * 40 * 10**4])
def test_in_batch_piecewise(memory):
    """Piecewise loss and gradients equal those of all scores at once, up to float32's rounding.

    This includes a user whose sequence holds every item, so that only the targets remain.
    """
    torch.manual_seed(0)
    items, users, length = 60, 10, 4
    sequences = torch.randint(0, 20, (users, length + 1)).sort(dim=1).values
    sequences[0] = torch.tensor([1, 2, 3, 1, 2])
    numbers = torch.arange(1, items + 1)
    batch = Batch(numbers, sequences, torch.zeros(0), torch.randn(items) - 4, predictions=1)
    alone = Batch(numbers[:3], sequences[:1], torch.zeros(0), torch.randn(3), predictions=1)
    for one in (batch, alone):
        results = []
        for limit in (2**30, memory):
            torch.manual_seed(1)
            encoder, embeddings = SASRec(8, length, 1, 2, 0.0), torch.randn(len(one.items), 8, requires_grad=True)
            objective = OBJECTIVES.get("in_batch")()
            objective.memory = limit
            loss = objective(embeddings, one, encoder)
            loss.backward()
            results.append([loss.detach(), embeddings.grad, *(p.grad for p in encoder.parameters())])
        for plain, piecewise in zip(*results, strict=True):
            torch.testing.assert_close(piecewise, plain, atol=1e-5, rtol=1e-5)
        assert torch.isfinite(results[1][0])


@pytest.mark.parametrize("items_at_a_time", [1, 7, 60])
def test_log_sums_in_chunks(items_at_a_time):
    users, items = (torch.randn(size, 8, **FIELDS).requires_grad_() for size in (40, 60))
    terms = Terms(torch.randn(60, **FIELDS), torch.randint(5, (40,)), torch.rand(5, 60) < 0.3)
    sums = log_sums(users, items, terms, 8 * 40 * items_at_a_time)
    logits = (users @ items.T + terms.prior).masked_fill(terms.excluded[terms.owner], -torch.inf)
    weights = torch.randn(40, **FIELDS)
    gradients = torch.autograd.grad((sums * weights).sum(), (users, items))
    plain = torch.autograd.grad((logits.logsumexp(1) * weights).sum(), (users, items))
    torch.testing.assert_close([sums, *gradients], [logits.logsumexp(1), *plain], atol=1e-12, rtol=1e-12)
