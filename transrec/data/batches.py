"""Training batches: the distinct items of a batch, each once, and index tensors that say which position is which.

A batch is a pure function of (seed, epoch, step), whatever the number of ranks: every rank draws the same global
batch and keeps its share of the users. That is also all a resumed run needs to know.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from transrec.data.features import Features
from transrec.data.interactions import Split
from transrec.errors import TransrecError


@dataclass(frozen=True)
class Batch:
    """A share of a global batch: B users, U distinct real items.

    Attributes:
        items: int64 [U], item numbers 1..n, ascending; stays on the host for the features to look up.
        inputs: the item encoder's inputs for `items`.
        sequences: int64 [B, L + 1], training sequences, left-padded; 0 is padding, k is `items[k - 1]`.
        negatives: int64 [B, L], or [B, L, K] of K > 1 per position, same coding; those at t are compared with the
            positive item at t + 1; 0 is none.
        log_popularity: float32 [U], log of each item's share of the training interactions.
        predictions: positions that predict, in the whole global batch: what sums over shares are divided by.
        weight: 1, or 0 for a stand-in where the global batch had no user left for this rank and piece.
        item_count: n, all items that there are.
    """

    items: Tensor
    sequences: Tensor
    negatives: Tensor
    log_popularity: Tensor
    predictions: int
    weight: float = 1.0
    inputs: tuple[Tensor, ...] = ()
    item_count: int = 0

    @property
    def mask(self) -> Tensor:
        """bool [B, L], the positions that hold an item and predict the next."""
        return self.sequences[:, :-1] > 0

    def to(self, device: torch.device, features: Features, read: tuple[Tensor, ...] | None = None) -> "Batch":
        """The batch on `device`, with the item encoder's inputs from `features`, or from what they have `read`."""
        return replace(
            self,
            inputs=features.inputs(self.items, read),
            **{
                name: getattr(self, name).to(device, non_blocking=True)
                for name in ("sequences", "negatives", "log_popularity")
            },
        )


def sample_negatives(
    rng: np.random.Generator, sequences: np.ndarray, item_count: int, negatives: int = 1
) -> np.ndarray:
    """For each of the last L positions of each sequence K = `negatives` items outside that sequence, uniformly.

    Draws a rank among the allowed items and skips the forbidden ones: one draw per negative, none is rejected.

    Args:
        sequences: int [B, L + 1], item numbers, 0 is padding.

    Returns:
        int64 [B, L * K], those of a position side by side.
    """
    forbidden = np.sort(sequences, axis=1).astype(np.int64)
    repeated = np.zeros_like(forbidden, dtype=bool)
    repeated[:, 1:] = forbidden[:, 1:] == forbidden[:, :-1]
    never = np.iinfo(np.int64).max
    forbidden[repeated | (forbidden == 0)] = never
    forbidden.sort(axis=1)
    allowed = item_count - (forbidden != never).sum(1, keepdims=True)
    ranks = rng.integers(0, allowed, size=(len(sequences), (sequences.shape[1] - 1) * negatives))
    # The i-th smallest forbidden item has forbidden[i] - 1 - i allowed ones below it: it is passed by every rank from
    # that number on.
    allowed_below = forbidden - 1 - np.arange(forbidden.shape[1])
    return 1 + ranks + (ranks[:, :, None] >= allowed_below[:, None, :]).sum(2)


class TrainingBatches:
    """The training users of a split, shuffled anew each epoch and cut into global batches.

    Args:
        split: where the sequences come from.
        batch_size: users in a global batch, over all ranks and pieces.
        negatives: how many sampled negatives the objective needs for each position.
        last_only: whether only the last position of a sequence predicts (CPC).
        pieces: number of parts that a rank's share is cut into (gradient accumulation).

    Raises TransrecError when a user leaves no item to draw negatives from, and when no user has two training items.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        negatives: int,
        last_only: bool,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        pieces: int = 1,
    ):
        self.train, self.width, self.item_count = split.train, split.max_seq_len + 1, split.item_count
        self.batch_size, self.negatives, self.last_only = batch_size, negatives, last_only
        self.seed, self.rank, self.ranks, self.pieces = seed, rank, ranks, pieces
        self._order: tuple[int, np.ndarray] | None = None
        # A single training item predicts nothing.
        self.users = np.flatnonzero(self.train.lengths >= 2)
        if not len(self.users):
            raise TransrecError("no user has two training items, which takes four interactions; nothing can be learned")
        if negatives:
            self._check_negatives()
        counts = split.train_counts()
        with np.errstate(divide="ignore"):
            self.log_popularity = np.log(counts / counts.sum()).astype(np.float32)

    def __len__(self) -> int:
        """Global batches in an epoch; the last one may be smaller."""
        return -(-len(self.users) // self.batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """Yield, for each global batch from `first_step` on, this rank's pieces of it."""
        for step in range(first_step, len(self)):
            yield self.pieces_of(epoch, step)

    def pieces_of(self, epoch: int, step: int) -> list[Batch]:
        """This rank's pieces of the global batch of a step, counted from 0."""
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.users)
        users = self._order[1][step * self.batch_size : (step + 1) * self.batch_size]
        rng = np.random.default_rng([self.seed, epoch, step])
        return self._pieces(self.train.last(self.width, users), rng)

    def _pieces(self, sequences: np.ndarray, rng: np.random.Generator) -> list[Batch]:
        mask = sequences[:, :-1] > 0
        if self.last_only:
            mask[:, :-1] = False
        negatives = np.zeros_like(mask, dtype=np.int64)
        if self.negatives:
            drawn = sample_negatives(rng, sequences, self.item_count, self.negatives)
            negatives = np.where(mask.repeat(self.negatives, axis=1), drawn, 0)
        predictions = int(mask.sum())
        share = np.array_split(np.arange(len(sequences)), self.ranks)[self.rank]
        # Every rank takes part in every collective call: a piece without users becomes a stand-in that weighs nothing.
        return [
            self._batch(sequences[piece], negatives[piece], predictions, 1.0)
            if len(piece)
            else self._batch(sequences[:1], negatives[:1], predictions, 0.0)
            for piece in np.array_split(share, self.pieces)
        ]

    def _batch(self, sequences: np.ndarray, negatives: np.ndarray, predictions: int, weight: float) -> Batch:
        items, index = np.unique(np.concatenate([sequences, negatives], axis=1), return_inverse=True)
        # 0 sorts first where there is padding; without any, codes still start at 1.
        index = index.reshape(len(sequences), -1) + (items[0] != 0)
        items = items[items != 0]
        return Batch(
            items=torch.from_numpy(items.astype(np.int64)),
            sequences=torch.from_numpy(index[:, : self.width]),
            negatives=torch.from_numpy(index[:, self.width :].reshape(self._negatives_shape(len(sequences)))),
            log_popularity=torch.from_numpy(self.log_popularity[items]),
            predictions=predictions,
            weight=weight,
            item_count=self.item_count,
        )

    def _negatives_shape(self, users: int) -> tuple[int, ...]:
        return (users, self.width - 1, self.negatives) if self.negatives > 1 else (users, self.width - 1)

    def _check_negatives(self) -> None:
        widest = self.users[self.train.lengths[self.users] >= self.item_count]
        for user in widest:
            if len(np.unique(self.train[user])) >= self.item_count:
                raise TransrecError(
                    f"a user's training sequence holds all {self.item_count} items, so no negative is left to draw; "
                    f"use a larger catalogue or --objective in_batch"
                )
