"""Rankings without training against plain loops, and their use in runs and tables."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import run
from scipy import sparse

from transrec.baselines import item_knn
from transrec.baselines.item_knn import ItemKNN, neighbours
from transrec.baselines.zero_shot import ZeroShot
from transrec.data.dataset import load_dataset
from transrec.data.features import IdFeatures
from transrec.data.states import StateFeatures
from transrec.options import EvaluationOptions
from transrec.reports.tables import distinct_baselines, read_result
from transrec.training.distributed import World
from transrec.training.evaluation import Evaluator
from transrec.training.ranks import read_ranks

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
LENGTH = 6


@pytest.fixture
def split(domain):
    return load_dataset(domain, LENGTH, 5).split


def contexts(split, part: str) -> torch.Tensor:
    return torch.from_numpy(getattr(split, part).without_last(1).last(LENGTH)).long()


def scores_of(scorer, sequences: torch.Tensor, count: int) -> np.ndarray:
    if isinstance(scorer.items, torch.Tensor):
        return (scorer.users(sequences) @ scorer.items.T).numpy()
    out = torch.empty(len(sequences), count)
    scorer.items.score(scorer.users(sequences), out)
    return out.numpy()


def plain_votes(split, part: str, count: int, shrinkage: float) -> np.ndarray:
    """Return scores [T, n] of item-kNN, computed pair by pair."""
    users = [{*split.train[user].tolist()} for user in range(len(split.train))]
    items = range(1, split.item_count + 1)
    similarities = {}
    for j in items:
        similar = {}
        for i in items:
            both = sum(i in user and j in user for user in users)
            if i != j and both:
                alone = [sum(item in user for user in users) for item in (i, j)]
                similar[i] = both / (math.sqrt(alone[0] * alone[1]) + shrinkage)
        similarities[j] = dict(sorted(similar.items(), key=lambda pair: (-np.float32(pair[1]), pair[0]))[:count])
    scores = np.zeros((len(getattr(split, part)), split.item_count))
    for row, sequence in enumerate(contexts(split, part).tolist()):
        for age, j in enumerate(reversed([item for item in sequence if item])):
            for i, value in similarities[j].items():
                scores[row, i - 1] += value / (age + 1)
    return scores


@pytest.mark.parametrize("count, pairs", [(3, 50), (1000, 2**22)])
def test_item_knn_equals_a_count_of_pairs(split, monkeypatch, count, pairs):
    monkeypatch.setattr(item_knn, "PAIRS_AT_ONCE", pairs)
    scorer = ItemKNN(count, 2.0).fit(split, [], ALONE)
    scores = scores_of(scorer, contexts(split, "test"), split.item_count)
    np.testing.assert_allclose(scores, plain_votes(split, "test", count, 2.0), rtol=1e-5, atol=1e-7)


def test_an_item_that_a_user_repeats_counts_once_and_no_item_is_near_itself():
    holds = sparse.csr_array(np.array([[1, 1, 0], [1, 1, 0], [0, 1, 1]], dtype=np.float32))
    similarities = neighbours(holds, 5, 0.0).toarray()
    expected = [[0, 2 / 6**0.5, 0], [2 / 6**0.5, 0, 1 / 3**0.5], [0, 1 / 3**0.5, 0]]
    np.testing.assert_allclose(similarities, expected, rtol=1e-6)


def test_zero_shot_is_the_mean_cosine(split):
    rng = np.random.default_rng(0)
    shapes = ((3, 5), (1, 7))
    states = [rng.normal(size=(split.item_count, *shape)).astype(np.float32) for shape in shapes]

    class File:
        path = "states"

        def __init__(self, states):
            self.states = states

    rows = np.arange(split.item_count)
    parts = [StateFeatures(File(array), rows, ALONE.device, "cpu") for array in states]
    scores = scores_of(ZeroShot().fit(split, parts, ALONE), contexts(split, "test"), split.item_count)
    units = [array[:, -1] / np.linalg.norm(array[:, -1], axis=1, keepdims=True) for array in states]
    cosines = sum(unit @ unit.T for unit in units) / 2
    for row, sequence in enumerate(contexts(split, "test").tolist()):
        similarities = [cosines[item - 1] for item in sequence if item]
        np.testing.assert_allclose(scores[row], np.mean(similarities, axis=0), atol=1e-6)
    assert ZeroShot().fit(split, [IdFeatures()], ALONE) is None
    assert ZeroShot().fit(split, [*parts, IdFeatures()], ALONE) is None


def test_little_memory_ranks_alike(split):
    scorer = ItemKNN().fit(split, [], ALONE)
    whole = Evaluator(split, IdFeatures(), EvaluationOptions(), ALONE).rank_by(scorer, "test").ranks
    evaluator = Evaluator(split, IdFeatures(), EvaluationOptions(eval_memory=1), ALONE)
    assert np.array_equal(evaluator.rank_by(scorer, "test").ranks, whole)


def test_a_run_keeps_what_its_baselines_rank(flags, tmp_path):
    result = run([*flags, "--epochs", "1", "--output", str(tmp_path), "--metrics", "diversity"], "frozen")
    assert result == read_result(tmp_path) and list(result["baselines"]) == ["item_knn", "zero_shot"]
    assert "Diversity@10" in result["popularity"] and "Diversity@10" not in result["baselines"]["item_knn"]
    for name, scores in {"popularity": result["popularity"], **result["baselines"]}.items():
        ranks = read_ranks(tmp_path, "test", name)
        assert (ranks["rank"] <= 10).mean() == pytest.approx(scores["HR@10"])
        assert np.array_equal(ranks["item"], read_ranks(tmp_path, "test")["item"])
    titles = [of.label for of in distinct_baselines([result, result])]
    assert titles == ["popularity", "item-kNN", "cosine of frozen embeddings (text)"]


def test_a_run_is_told_which_baselines_and_which_it_cannot_make(flags, tmp_path):
    words = [*flags, "--epochs", "1", "--item_tower", "id"]
    assert list(run([*words, "--output", str(tmp_path / "all")])["baselines"]) == ["item_knn"]
    alone = run([*words, "--output", str(tmp_path / "alone"), "--baselines", "popularity"])
    assert alone["baselines"] == {} and alone["popularity"]["HR@10"] >= 0
    (tmp_path / "alone" / "result.json").write_text(json.dumps(alone | {"baselines": {"item_knn": {"HR@10": "x"}}}))
    with pytest.raises(Exception, match="baseline 'item_knn' must be numbers"):
        read_result(tmp_path / "alone")
