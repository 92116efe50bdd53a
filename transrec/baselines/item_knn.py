"""Nearest neighbours among items, by the users that they have in common: `item_knn`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from transrec.baselines.base import Baseline, register
from transrec.data.features import Features
from transrec.data.interactions import Split
from transrec.options import Options, flag
from transrec.training.distributed import World
from transrec.training.evaluation import Scorer

# Number of item pairs that are counted at once; each takes about 24 bytes.
PAIRS_AT_ONCE = 2**22


@dataclass(frozen=True)
class ItemKNNOptions(Options):
    _minimum: ClassVar[dict[str, float]] = {"knn_neighbours": 1, "knn_shrinkage": 0}

    knn_neighbours: int = flag(
        100, "Number of nearest items that each context item votes for, in the baseline item_knn."
    )
    knn_shrinkage: float = flag(
        20.0,
        "Added to the denominator of the cosine in item_knn, so that items with few common users are less similar.",
    )


@register("item_knn")
class ItemKNN(Baseline):
    """Ranks items by the votes of the context's items for their nearest neighbours (docs/protocol.md).

    Items are similar if the same users interact with them. The similarity of the items i and j is
    c_ij / (sqrt(c_i c_j) + shrinkage), where c_ij is the number of training sequences that hold both items and c_i the
    number that hold i. The vote of a context item that is a places before the last one has the weight 1 / (a + 1).
    """

    label: ClassVar[str] = "item-kNN"
    Options = ItemKNNOptions

    def __init__(self, knn_neighbours: int = 100, knn_shrinkage: float = 20.0):
        self.neighbours, self.shrinkage = knn_neighbours, knn_shrinkage

    def fit(self, split: Split, parts: Sequence[Features], world: World) -> Scorer:
        votes = Votes(neighbours(_interaction_matrix(split), self.neighbours, self.shrinkage), world.device)
        return Scorer(votes, lambda contexts: contexts)


class Votes:
    """Scores items by the votes of the items in a context.

    Args:
        similarities: float32 [n, n]; row j holds the similarities of item j + 1 to its neighbours.
        device: the device of the scores.
    """

    def __init__(self, similarities: sparse.csr_array, device: torch.device):
        self.similarities, self.device = similarities, device

    def __len__(self) -> int:
        return self.similarities.shape[0]

    def score(self, users: Tensor, out: Tensor) -> None:
        """Write the votes of contexts int64 [B, L], left-padded with 0, into `out`, float32 [B, n]."""
        contexts = users.cpu().numpy()
        rows, places = np.nonzero(contexts)
        weights = (1 / (contexts.shape[1] - places)).astype(np.float32)
        voters = sparse.csr_array((weights, (rows, contexts[rows, places] - 1)), shape=(len(contexts), len(self)))
        out.copy_(torch.from_numpy((voters @ self.similarities).toarray()))


def _interaction_matrix(split: Split) -> sparse.csr_array:
    """Return which items each training sequence holds, as 1 or 0: float32 [users, n]."""
    train = split.train
    shape = len(train), split.item_count
    values = np.ones(int(train.lengths.sum()), dtype=np.float32)
    interactions = sparse.csr_array((values, (train.owners(), train.flat() - 1)), shape=shape)
    interactions.data[:] = 1
    return interactions


def neighbours(interactions: sparse.csr_array, count: int, shrinkage: float) -> sparse.csr_array:
    """Return each item's similarities to its `count` nearest others, float32 [n, n]; ties go to the lower number."""
    counts = np.asarray(interactions.sum(0)).ravel()
    items, blocks = interactions.T.tocsr(), []
    for start, stop in _blocks(items, np.diff(interactions.indptr)):
        together = (items[start:stop] @ interactions).tocoo()
        rows, columns = together.row, together.col
        is_other = rows + start != columns
        rows, columns, values = rows[is_other], columns[is_other], together.data[is_other]
        values = values / (np.sqrt(counts[rows + start] * counts[columns]) + np.float32(shrinkage))
        order = np.lexsort((columns, -values, rows))
        rows, columns, values = rows[order], columns[order], values[order]
        first = np.searchsorted(rows, np.arange(stop - start))
        is_near = np.arange(len(rows)) - first[rows] < count
        block = sparse.csr_array(
            (values[is_near], (rows[is_near], columns[is_near])), shape=(stop - start, len(counts))
        )
        blocks.append(block.astype(np.float32))
    return sparse.vstack(blocks, format="csr")


def _blocks(items: sparse.csr_array, lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield ranges of at least one item and about PAIRS_AT_ONCE pairs with items of the same sequences."""
    pairs = np.cumsum(items @ lengths)
    start = 0
    while start < len(pairs):
        before = pairs[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(pairs, before + PAIRS_AT_ONCE, side="right")))
        yield start, stop
        start = stop
