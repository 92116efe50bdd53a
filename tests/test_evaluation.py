"""Ranks and metrics against plain implementations and an independent evaluator."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transrec.baselines.popularity import Popularity
from transrec.data.dataset import load_dataset
from transrec.data.features import IdFeatures
from transrec.errors import TransrecError
from transrec.modalities.id import IdTower
from transrec.models.objectives.bce import BCEObjective
from transrec.models.recommender import Recommender
from transrec.models.user_encoders.sasrec import SASRec
from transrec.options import EvaluationOptions
from transrec.training import evaluation, metrics
from transrec.training.distributed import World
from transrec.training.evaluation import Evaluator, Ranker
from transrec.training.metrics import AUC, MAP, MRR, PAPERS, Metric, Ranking, RankMetric, Recall, intervals, summarise

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def plain_margin(scores, target, seen, mask_history):
    hidden = {"seen": seen, "none": set(), "seen_but_target": seen - {target}}[mask_history]
    if target in hidden:
        return -math.inf
    others = [scores[i - 1] for i in range(1, len(scores) + 1) if i != target and i not in hidden]
    return scores[target - 1] - max(others, default=-math.inf)


def plain_rank(scores: np.ndarray, target: int, seen: set[int], mask_history: str) -> float:
    """Return one user's rank, computed item by item."""
    hidden = {"seen": seen, "none": set(), "seen_but_target": seen - {target}}[mask_history]
    if target in hidden:
        return math.inf
    others = [scores[i - 1] for i in range(1, len(scores) + 1) if i != target and i not in hidden]
    higher = sum(score > scores[target - 1] for score in others)
    equal = sum(score == scores[target - 1] for score in others)
    return 1 + higher + math.ceil(equal / 2)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**31),
    mask_history=st.sampled_from(["seen", "none", "seen_but_target"]),
    memory=st.sampled_from([1, 500, 2**20]),
)
def test_ranks_equal_a_plain_count(seed, mask_history, memory):
    """Small integers as coordinates make many ties and exact products."""
    rng = np.random.default_rng(seed)
    items = rng.integers(-2, 3, (17, 3)).astype(np.float32)
    users = rng.integers(-2, 3, (9, 3)).astype(np.float32)
    targets = rng.integers(1, 18, 9)
    history = [rng.integers(1, 18, rng.integers(0, 6)) for _ in range(9)]
    owner = np.repeat(np.arange(9), [len(h) for h in history])
    flat = np.concatenate(history).astype(np.int64)
    ranker = Ranker(torch.from_numpy(items), memory, mask_history)
    ranked = ranker.rank(*(torch.from_numpy(a) for a in (users, targets, flat, owner)))
    of_each = [(items @ users[u], targets[u], set(history[u].tolist()), mask_history) for u in range(9)]
    assert ranked.ranks.tolist() == [plain_rank(*user) for user in of_each]
    assert ranked.margins.tolist() == [plain_margin(*user) for user in of_each]


def test_constant_scores_hit_nothing():
    nothing = torch.zeros(0, dtype=torch.long)
    ranks = Ranker(torch.ones(1000, 1), 2**20, "seen").ranks(torch.ones(5, 1), torch.arange(1, 6), nothing, nothing)
    assert ranks.tolist() == [501.0] * 5


def test_a_target_alone_and_scores_beyond_float32():
    nothing, one = torch.zeros(0, dtype=torch.long), torch.ones(1, dtype=torch.long)
    seen = torch.tensor([2, 3]), torch.zeros(2, dtype=torch.long)
    alone = Ranker(torch.ones(3, 1), 2**20, "seen").rank(torch.ones(1, 1), one, *seen)
    assert (alone.ranks.item(), alone.margins.item()) == (1, math.inf)
    with pytest.raises(TransrecError, match="the model's scores are not finite"):
        Ranker(torch.full((3, 1), 1e30), 2**20, "seen").rank(torch.full((1, 1), 1e30), one, nothing, nothing)


def test_metrics_by_hand():
    metrics = summarise(Ranking(np.array([1.0, 3.0, 11.0, np.inf])), [1, 10])
    assert metrics["HR@1"] == 0.25 and metrics["HR@10"] == 0.5
    assert metrics["NDCG@10"] == pytest.approx((1 + 1 / 2) / 4)
    assert metrics["MRR"] == pytest.approx((1 + 1 / 3 + 1 / 11) / 4)


def test_lists_hold_the_best_items_that_are_not_masked():
    rng = np.random.default_rng(1)
    items, users = rng.standard_normal((40, 8)).astype(np.float32), rng.standard_normal((9, 8)).astype(np.float32)
    # The last user has seen all items but three.
    history = [rng.choice(40, size, replace=False) + 1 for size in (*range(8), 37)]
    targets, owner = rng.integers(1, 41, 9), np.repeat(np.arange(9), [len(seen) for seen in history])
    arrays = [torch.from_numpy(a) for a in (users, targets, np.concatenate(history), owner)]
    rankings = [Ranker(torch.from_numpy(items), memory, "seen", length=5).rank(*arrays) for memory in (1, 2**20)]
    scores = users @ items.T
    for user, seen in enumerate(history):
        scores[user, seen - 1] = -np.inf
    expected = np.argsort(-scores, axis=1)[:, :5] + 1
    expected[8, 3:] = 0
    for *_, lists in rankings:
        assert lists.dtype == torch.int32 and np.array_equal(lists, expected)


@pytest.mark.parametrize("count", [40, 3000])
def test_of_equal_scores_the_lower_number_is_listed_first(count):
    """With few items, and with so many that only some of them are examined."""
    rng = np.random.default_rng(2)
    scores = rng.integers(0, 3, (16, count)).astype(np.float32)
    scores[0] = 1
    nothing, targets = torch.zeros(0, dtype=torch.long), torch.ones(16, dtype=torch.long)
    # The products with unit vectors are the entries themselves.
    ranker = Ranker(torch.from_numpy(scores.T.copy()), 2**20, "seen", length=7)
    lists = ranker.rank(torch.eye(16), targets, nothing, nothing).lists
    assert np.array_equal(lists, np.argsort(-scores, axis=1, kind="stable")[:, :7] + 1)


def test_auc_is_the_share_of_the_others_behind_the_target():
    rng = np.random.default_rng(3)
    scores = rng.standard_normal((30, 50))
    ranks = 1 + (scores > scores[:, :1]).sum(1)
    expected = (scores[:, 1:] < scores[:, :1]).mean()
    assert AUC()(Ranking(ranks.astype(float), item_count=50), 10) == pytest.approx(expected)
    assert AUC()(Ranking(np.array([np.inf, 1.0]), item_count=50), 10) == 0.5


def test_metrics_of_what_is_recommended_equal_their_definitions():
    rng = np.random.default_rng(4)
    lists = np.stack([rng.permutation(12)[:6] + 1 for _ in range(40)]).astype(np.int32)
    lists[0, 3:] = 0
    counts, embeddings = rng.integers(0, 9, 12), rng.standard_normal((12, 5)).astype(np.float32)
    ranking = Ranking(np.ones(40), lists, 12, counts, embeddings)
    chosen = [[item - 1 for item in row[:5] if item] for row in lists.tolist()]
    shown = [item for row in chosen for item in row]
    of_each = np.bincount(shown, minlength=12)
    cosine = np.corrcoef(np.hstack([embeddings, -embeddings]))  # Equal to the cosine for vectors with mean zero.
    unlike = [np.mean([1 - cosine[a, b] for a in row for b in row if a != b]) for row in chosen]
    expected = {
        "coverage": len(set(shown)) / 12,
        "gini": np.abs(of_each[:, None] - of_each[None]).sum() / (2 * 12 * of_each.sum()),
        "popularity": np.mean([counts[item] for item in shown]),
        "novelty": np.mean([-np.log2(max(counts[item], 1) / counts.sum()) for item in shown]),
        "diversity": np.mean(unlike),
    }
    for name, value in expected.items():
        assert metrics.METRICS.get(name)()(ranking, 5) == pytest.approx(value, rel=1e-5), name
    nothing = Ranking(np.ones(2), np.zeros((2, 5), np.int32), 12, counts, embeddings)
    assert all(np.isfinite(metrics.METRICS.get(name)()(nothing, 5)) for name in expected)


def test_values_that_are_no_metric_are_refused():
    class Broken(Metric):
        label, has_cutoff = "MRR", False

        def __call__(self, ranking, k):
            return float("nan")

    with pytest.raises(TransrecError, match="--metrics: Broken gives MRR nan, which is not finite"):
        summarise(Ranking(np.ones(3)), [10], [Broken()])
    with pytest.raises(TransrecError, match="--metrics: two of them give MRR, Broken for one"):
        summarise(Ranking(np.ones(3)), [10], [MRR(), Broken()])


def test_metrics_equal_an_independent_evaluator():
    ir_measures = pytest.importorskip("ir_measures", reason="ir-measures is not installed")
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((50, 200))
    targets = rng.integers(0, 200, 50)
    ranks = 1 + (scores > scores[np.arange(50), targets][:, None]).sum(1)
    ours = summarise(Ranking(ranks.astype(float)), [5, 10, 20], [*PAPERS, Recall(), metrics.Precision(), MAP()])
    judged = {f"u{u}": {f"i{t}": 1} for u, t in enumerate(targets)}
    ranked = {f"u{u}": {f"i{i}": float(s) for i, s in enumerate(row)} for u, row in enumerate(scores)}
    called = {"HR": "Success", "NDCG": "nDCG", "Recall": "R", "Precision": "P", "MAP": "AP"}
    names = {f"{ours}@{k}": getattr(ir_measures, theirs) @ k for ours, theirs in called.items() for k in (5, 10, 20)}
    theirs = ir_measures.calc_aggregate([*names.values(), ir_measures.RR], judged, ranked)
    for name, measure in (names | {"MRR": ir_measures.RR}).items():
        assert ours[name] == pytest.approx(theirs[measure], abs=1e-9)


@pytest.fixture
def split(domain):
    return load_dataset(domain, 6, 5).split


@pytest.fixture
def recommender(split):
    torch.manual_seed(0)
    return Recommender(IdTower(split.item_count, 16), SASRec(16, 6, 2, 2, 0.1), BCEObjective())


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize("mask_history", ["seen", "none", "seen_but_target"])
def test_evaluation_equals_one_user_at_a_time(split, recommender, part, mask_history):
    options = EvaluationOptions(mask_history=mask_history, eval_memory=1, eval_batch=7)
    evaluator = Evaluator(split, IdFeatures(), options, ALONE)
    recommender.eval()
    ranks = []
    with torch.no_grad():
        items = recommender.item_encoder(torch.arange(1, split.item_count + 1))
        for user in range(split.user_count):
            *context, target = getattr(split, part)[user].tolist()
            shown = torch.zeros(6, 16)
            shown[6 - len(context) :] = items[torch.tensor(context) - 1]
            vector = recommender.user_encoder(shown[None], (torch.arange(6) >= 6 - len(context))[None])[0, -1]
            seen = set(split.history(part)[user].tolist())
            ranks.append(plain_rank((items @ vector).numpy(), target, seen, mask_history))
    assert evaluator.evaluate(recommender, part) == pytest.approx(
        summarise(Ranking(np.array(ranks)), [5, 10, 20]), abs=1e-12
    )


def test_ranks_and_lists_are_those_of_one_process_however_many_share_them(split, monkeypatch):
    class Lists(Metric):
        label, needs_lists = "Coverage", True

    class Share(World):
        def sum(self, tensor):
            return tensor

    monkeypatch.setattr(evaluation, "USERS_AT_ONCE", 16)
    torch.manual_seed(0)
    items, users = torch.randn(split.item_count, 8), torch.randn(split.user_count, 8)
    shares = [ALONE, *(Share(rank=rank, size=3, device=ALONE.device) for rank in range(3))]
    whole, *parts = (
        Evaluator(split, IdFeatures(), EvaluationOptions(), world, metrics=[Lists()])._rank_in_blocks(
            items, lambda numbers: users[numbers], "test"
        )
        for world in shares
    )
    assert whole.lists.shape == (split.user_count, 20) and whole.item_count == split.item_count
    assert all((part.ranks == 0).any() for part in parts)
    assert np.array_equal(sum(part.ranks for part in parts), whole.ranks)
    assert np.array_equal(sum(part.lists for part in parts), whole.lists)


def test_evaluation_leaves_the_mode_as_it_was(split, recommender):
    evaluator = Evaluator(split, IdFeatures(), EvaluationOptions(), ALONE)
    for mode in (True, False):
        recommender.train(mode)
        evaluator.evaluate(recommender, "test")
        assert recommender.training == mode


def test_popularity_ranks_by_training_count(split):
    evaluator = Evaluator(split, IdFeatures(), EvaluationOptions(), ALONE)
    counts = split.train_counts()[1:].astype(float)
    ranks = [
        plain_rank(counts, split.test[u][-1], set(split.history("test")[u].tolist()), "seen")
        for u in range(split.user_count)
    ]
    found = evaluator.summarise(evaluator.rank_by(Popularity().fit(split, [], ALONE), "test"))
    assert found == pytest.approx(summarise(Ranking(np.array(ranks)), [5, 10, 20]))


def test_embeddings_that_are_not_finite_are_refused(split, recommender):
    recommender.item_encoder.embedding.weight.data[3] = torch.nan
    evaluator = Evaluator(split, IdFeatures(), EvaluationOptions(), ALONE)
    with pytest.raises(TransrecError, match="item embeddings are not finite"):
        evaluator.evaluate(recommender, "test")


class MeanRank(RankMetric):
    label, has_cutoff = "mean rank", False

    def per_target(self, ranks, k):
        return ranks


def test_intervals_of_a_sample_hold_the_value_of_all_users():
    """95 % of 600 samples do, within 2.5 standard deviations; a user's targets are similar and count as one unit."""
    rng = np.random.default_rng(0)
    users, drawn = 2000, 500
    # Some users have no target.
    owners = np.repeat(np.arange(users), rng.integers(0, 6, users))
    of_users = rng.exponential(15, users)
    ranks = np.ceil(rng.exponential(of_users[owners])).clip(1)
    whole, held = summarise(Ranking(ranks), [10]), []
    for _ in range(600):
        of_sample = np.isin(owners, rng.choice(users, drawn, replace=False))
        found = intervals(Ranking(ranks[of_sample]), owners[of_sample], drawn, users, [10])
        assert list(found) == list(whole)
        held.append([low <= whole[name] <= high for name, (low, high) in found.items()])
    assert np.all(np.abs(np.mean(held, axis=0) - 0.95) < 2.5 * math.sqrt(0.95 * 0.05 / 600))
    found = intervals(Ranking(ranks[:50]), owners[:50], drawn, users, [10], [MeanRank()])
    assert 1 < found["mean rank"][0] < ranks[:50].mean() < found["mean rank"][1], "bounds of 0 and 1 are of shares"
    # A sample of all users leaves no uncertainty.
    everyone = intervals(Ranking(ranks), owners, users, users, [10])
    assert everyone == {name: pytest.approx((value, value)) for name, value in whole.items()}
