"""Training batches: the distinct items of a batch, and index tensors that map each position to its item.

A batch is a pure function of (seed, epoch, step), whatever the number of ranks: every rank draws the same global
batch and keeps its share of the users. A resumed run needs to know nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from transrec.data.features import Features
from transrec.data.groups import Inputs, group_inputs
from transrec.data.interactions import Split
from transrec.errors import TransrecError


@dataclass(frozen=True)
class Batch:
    """A share of a global batch: B users, U distinct real items.

    Attributes:
        items: int64 [U], item numbers 1..n, ascending; stays on the host, where the features look items up.
        inputs: the item encoder's inputs for `items`.
        sequences: int64 [B, L + 1], training sequences, left-padded; 0 is padding, k is `items[k - 1]`.
        negatives: int64 [B, L], or [B, L, K] for K > 1 negatives per position, coded like `sequences`; the negatives at
            t are compared with the positive item at t + 1; 0 means no negative.
        log_popularity: float32 [U], log of each item's share of the training interactions.
        shared_negatives: int64 [N], same coding: negatives shared by all positions, drawn once per global batch.
        log_chance: float32 [U], log of the probability that a drawn negative is this item.
        cached_places: the result of `places` as one tensor, [2, P]; None: not computed yet.
        predictions: number of positions in the global batch that predict; sums over shares are divided by it.
        weight: 1, or 0 for a stand-in if the global batch had no user left for this rank and piece.
        item_count: n, the number of items of the split.
    """

    items: Tensor
    sequences: Tensor
    negatives: Tensor
    log_popularity: Tensor
    predictions: int
    weight: float = 1.0
    inputs: Inputs = Inputs(())
    item_count: int = 0
    shared_negatives: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    log_chance: Tensor = field(default_factory=lambda: torch.zeros(0))
    cached_places: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """bool [B, L], true at positions that hold an item and predict the next one."""
        return self.sequences[:, :-1] > 0

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """Row and position of each of the P true entries of `mask`, in order: int64 [P] each."""
        row, position = self.mask.nonzero().T if self.cached_places is None else self.cached_places
        return row, position

    def to(self, device: torch.device, features: Features, read: tuple[Tensor, ...] | None = None) -> "Batch":
        """Return the batch on `device`, with inputs from `features`, or from `read` if they were read before."""
        # The number of places decides shapes: if an accelerator counted them, the host would have to wait for it.
        located = replace(self, cached_places=torch.stack(self.places))
        return replace(
            located,
            inputs=group_inputs(features, self.items, read),
            **{
                name: getattr(located, name).to(device, non_blocking=True)
                for name in (
                    "sequences",
                    "negatives",
                    "log_popularity",
                    "shared_negatives",
                    "log_chance",
                    "cached_places",
                )
            },
        )


@dataclass(frozen=True)
class Sampling:
    """How negatives are drawn, and which items a batch holds in addition to sequences and negatives per position.

    Attributes:
        sampler: the distribution of negatives: "uniform", "popularity" (an item's number of training interactions to
            the power of `power`), or "in_batch" (how often the sequences of the global batch hold the item).
        power: exponent of "popularity", at least 0.
        shared: number of negatives that all positions of the global batch share, repeats included.
        catalogue: whether every item 1..n is in the batch.
    """

    sampler: str = "uniform"
    power: float = 1.0
    shared: int = 0
    catalogue: bool = False


# Popularities are rounded to multiples of 1 / POPULARITY_SCALE, so that drawing is exact integer arithmetic without
# rejections.
POPULARITY_SCALE = 2**16
# The largest sum of weights: that of thousands of sequences still fits 64 bits.
MOST_WEIGHT = 2**48


class Sampler:
    """Draws items 1..n with probabilities proportional to integer weights.

    Args:
        weights: int64 [n]; None: all items are equally likely.
    """

    def __init__(self, item_count: int, weights: np.ndarray | None = None):
        self.item_count, self.weights = item_count, weights
        # Cumulative weights of the items, with a leading 0.
        self._sums = None if weights is None else np.concatenate([[0], np.cumsum(weights)])
        self.total = item_count if self._sums is None else int(self._sums[-1])

    @property
    def log_chances(self) -> np.ndarray:
        """Log of each item's probability in one draw: float32 [n], -inf for items that are never drawn."""
        if self.weights is None:
            return np.full(self.item_count, -np.log(self.item_count), np.float32)
        with np.errstate(divide="ignore"):
            return (np.log(self.weights) - np.log(self.total)).astype(np.float32)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw `count` items with replacement: int64 [count]."""
        return self._items_at(rng.integers(0, self.total, size=count))

    def draw_outside(self, rng: np.random.Generator, sequences: np.ndarray, negatives: int = 1) -> np.ndarray:
        """Draw K = `negatives` items outside the sequence for each of the last L positions of each sequence.

        Draws a place within the total weight of the allowed items and skips the forbidden ones: one draw per negative,
        with no rejections.

        Args:
            sequences: int [B, L + 1], item numbers; 0 is padding.

        Returns:
            int64 [B, L * K], the K negatives of a position next to each other; 0 if no item is allowed.
        """
        forbidden = np.sort(sequences, axis=1).astype(np.int64)
        repeated = np.zeros_like(forbidden, dtype=bool)
        repeated[:, 1:] = forbidden[:, 1:] == forbidden[:, :-1]
        forbidden[repeated | (forbidden == 0)] = self.item_count + 1
        forbidden.sort(axis=1)
        real = forbidden <= self.item_count
        passed_over = np.cumsum(np.where(real, self._weight(forbidden), 0), axis=1)
        passed_over = np.concatenate([np.zeros((len(sequences), 1), np.int64), passed_over], axis=1)
        allowed = self.total - passed_over[:, -1:]
        shape = len(sequences), (sequences.shape[1] - 1) * negatives
        places = rng.integers(0, np.maximum(allowed, 1), size=shape)
        # A place skips each forbidden item that has at most that much allowed weight below it.
        allowed_below = np.where(real, self._weight_below(forbidden) - passed_over[:, :-1], self.total)
        # A single search covers all rows: each row is shifted to lie behind the previous one.
        shift = np.arange(len(sequences))[:, None] * (self.total + 1)
        skipped = np.searchsorted((allowed_below + shift).ravel(), (places + shift).ravel(), side="right")
        skipped = skipped.reshape(shape) - np.arange(len(sequences))[:, None] * forbidden.shape[1]
        drawn = self._items_at(np.minimum(places + np.take_along_axis(passed_over, skipped, axis=1), self.total - 1))
        return np.where(allowed > 0, drawn, 0)

    def _weight(self, items: np.ndarray) -> np.ndarray | int:
        return 1 if self.weights is None else self.weights[np.minimum(items, self.item_count) - 1]

    def _weight_below(self, items: np.ndarray) -> np.ndarray:
        """Return the total weight of the items with lower numbers."""
        return items - 1 if self._sums is None else self._sums[np.minimum(items, self.item_count) - 1]

    def _items_at(self, places: np.ndarray) -> np.ndarray:
        """Return the items at places 0 to `total` - 1."""
        return 1 + (places if self._sums is None else np.searchsorted(self._sums[1:], places, side="right"))


class TrainingBatches:
    """The training users of a split, reshuffled each epoch and cut into global batches.

    Args:
        split: the split whose training sequences are used.
        batch_size: users in a global batch, over all ranks and pieces.
        negatives: number of sampled negatives that the objective needs for each position.
        last_only: whether only the last position of a sequence predicts (CPC).
        pieces: number of parts that a rank's share is cut into (gradient accumulation).
        sampling: how negatives are drawn, and what else the objective needs.

    Raises TransrecError if there are not more items than negatives, if a user's sequence leaves no item to draw
    negatives from, or if no user has two training items.
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
        sampling: Sampling | None = None,
    ):
        self.sampling = sampling or Sampling()
        self.train, self.width, self.item_count = split.train, split.max_seq_len + 1, split.item_count
        self.batch_size, self.negatives, self.last_only = batch_size, negatives, last_only
        self.seed, self.rank, self.ranks, self.pieces = seed, rank, ranks, pieces
        self._order: tuple[int, np.ndarray] | None = None
        # A user with a single training item has nothing to predict.
        self.users = np.flatnonzero(self.train.lengths >= 2)
        if not len(self.users):
            raise TransrecError(
                "no user has two training items, so nothing can be learned; give longer sequences, or another --split"
            )
        if most := max(negatives, self.sampling.shared):
            self._check_negatives(most)
        counts = split.train_counts()
        with np.errstate(divide="ignore"):
            self.log_popularity = np.log(counts / counts.sum()).astype(np.float32)
        self.sampler = self._sampler(counts[1:])
        self.log_chance = np.concatenate([[0], self.sampler.log_chances]).astype(np.float32)

    def __len__(self) -> int:
        """Return the number of global batches in an epoch; the last one may be smaller."""
        return -(-len(self.users) // self.batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """Yield this rank's pieces of each global batch from `first_step` on."""
        for step in range(first_step, len(self)):
            yield self.pieces_of(epoch, step)

    def pieces_of(self, epoch: int, step: int) -> list[Batch]:
        """Return this rank's pieces of the global batch of a step; steps count from 0."""
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.users)
        users = self._order[1][step * self.batch_size : (step + 1) * self.batch_size]
        rng = np.random.default_rng([self.seed, epoch, step])
        return self._pieces(self.train.last(self.width, users), rng)

    def _pieces(self, sequences: np.ndarray, rng: np.random.Generator) -> list[Batch]:
        mask = sequences[:, :-1] > 0
        if self.last_only:
            mask[:, :-1] = False
        sampler = self.sampler
        if self.sampling.sampler == "in_batch":
            sampler = Sampler(self.item_count, np.bincount(sequences.ravel(), minlength=self.item_count + 1)[1:])
        negatives = np.zeros_like(mask, dtype=np.int64)
        if self.negatives:
            drawn = sampler.draw_outside(rng, sequences, self.negatives)
            negatives = np.where(mask.repeat(self.negatives, axis=1), drawn, 0)
        shared = sampler.draw(rng, self.sampling.shared)
        predictions = int(mask.sum())
        share = np.array_split(np.arange(len(sequences)), self.ranks)[self.rank]
        # Every rank must join every collective call, so a piece without users becomes a stand-in of weight 0.
        return [
            self._batch(sequences[piece], negatives[piece], shared, predictions, 1.0)
            if len(piece)
            else self._batch(sequences[:1], negatives[:1], shared, predictions, 0.0)
            for piece in np.array_split(share, self.pieces)
        ]

    def _batch(
        self, sequences: np.ndarray, negatives: np.ndarray, shared: np.ndarray, predictions: int, weight: float
    ) -> Batch:
        numbers = np.concatenate([sequences.ravel(), negatives.ravel(), shared])
        if self.sampling.catalogue:
            items, index = np.arange(1, self.item_count + 1), numbers.astype(np.int64)
        else:
            items, index = np.unique(numbers, return_inverse=True)
            # If there is padding, 0 sorts first; without padding, codes must still start at 1.
            index = index.reshape(-1) + (items[0] != 0)
            items = items[items != 0]
        in_sequences, in_negatives, in_shared = np.split(index, [sequences.size, sequences.size + negatives.size])
        return Batch(
            items=torch.from_numpy(items.astype(np.int64)),
            sequences=torch.from_numpy(in_sequences.reshape(sequences.shape)),
            negatives=torch.from_numpy(in_negatives.reshape(self._negatives_shape(len(sequences)))),
            shared_negatives=torch.from_numpy(in_shared),
            log_popularity=torch.from_numpy(self.log_popularity[items]),
            log_chance=torch.from_numpy(self.log_chance[items]),
            predictions=predictions,
            weight=weight,
            item_count=self.item_count,
        )

    def _negatives_shape(self, users: int) -> tuple[int, ...]:
        return (users, self.width - 1, self.negatives) if self.negatives > 1 else (users, self.width - 1)

    def _sampler(self, counts: np.ndarray) -> Sampler:
        """Return a sampler for the whole catalogue; for "in_batch", one that matches the average over batches."""
        power = {"uniform": 0.0, "popularity": self.sampling.power, "in_batch": 1.0}[self.sampling.sampler]
        if not power:
            return Sampler(self.item_count)
        with np.errstate(over="ignore"):
            weights = counts**power * POPULARITY_SCALE
        if not weights.sum() <= MOST_WEIGHT:
            weights = (counts / counts.max()) ** power
            weights *= MOST_WEIGHT / weights.sum()
        return Sampler(self.item_count, np.maximum(np.rint(weights), counts > 0).astype(np.int64))

    def _check_negatives(self, count: int) -> None:
        if count >= self.item_count:
            raise TransrecError(
                f"--negatives {count}: the dataset has {self.item_count} items, one of them a position's target; give "
                f"fewer"
            )
        widest = self.users[self.train.lengths[self.users] >= self.item_count] if self.negatives else []
        for user in widest:
            if len(np.unique(self.train[user])) >= self.item_count:
                raise TransrecError(
                    f"a user's training sequence holds all {self.item_count} items, so no negative is left to draw; "
                    f"use a larger catalogue or --objective in_batch"
                )
