"""Base class and registry of training objectives, and functions that several of them share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from transrec.data.batches import Batch, Sampling
from transrec.options import Options, flag
from transrec.registry import Registry


class Objective:
    """Base class of all objectives. The constructor takes the values of the objective's flags as keyword arguments.

    Attributes:
        Options: the dataclass of the objective's flags.
        negatives: the number of sampled negatives that the batch must hold for each position.
        last_only: whether only the last position of a sequence predicts.
        sampling: how negatives are drawn, and what else the batch must hold.
    """

    Options: type[Options] = Options
    negatives: int = 0
    last_only: ClassVar[bool] = False
    sampling: Sampling = Sampling()

    def __call__(self, embeddings: Tensor, batch: Batch, user_encoder: Callable) -> Tensor:
        """Return the loss, a scalar summed over the predicting positions; the trainer divides by their number.

        Args:
            embeddings: [U, d], of the batch's distinct items.
            user_encoder: maps ([B, L, d], mask [B, L]) to [B, L, d].
        """
        raise NotImplementedError

    def scoring_embeddings(self, embeddings: Tensor) -> Tensor:
        """Return item embeddings [n, d] as they are multiplied with user vectors, in evaluation too: here unchanged."""
        return embeddings

    def scoring_users(self, users: Tensor) -> Tensor:
        """Return user vectors [..., d] as they are multiplied with `scoring_embeddings` to rank: here unchanged."""
        return users


OBJECTIVES: Registry[Objective] = Registry("objective", Objective, __package__)
register = OBJECTIVES.register


@dataclass(frozen=True)
class NegativesOptions(Options):
    """Flags of objectives that compare each position's target with negatives of that position."""

    _minimum: ClassVar[dict[str, float]] = {"negatives": 1}

    negatives: int = flag(1, "K, the number of sampled negatives per position; each is one more item to encode.")


def lookup_embeddings(embeddings: Tensor, index: Tensor) -> Tensor:
    """Return the embeddings [U, d] at `index`, coded as in Batch (0 = padding, a zero vector)."""
    return F.pad(embeddings, (0, 0, 1, 0))[index]


def user_vectors(embeddings: Tensor, batch: Batch, user_encoder: Callable) -> tuple[Tensor, Tensor]:
    """Return user vectors [B, L, d] and target embeddings [B, L, d] (the item after each position)."""
    sequences = lookup_embeddings(embeddings, batch.sequences)
    return user_encoder(sequences[:, :-1], batch.mask), sequences[:, 1:]


def pair_scores(embeddings: Tensor, batch: Batch, user_encoder: Callable) -> tuple[Tensor, Tensor]:
    """Return the scores of each position's target, float32 [B, L], and of its negatives, [B, L, K]."""
    users, targets = user_vectors(embeddings, batch, user_encoder)
    negatives = lookup_embeddings(embeddings, batch.negatives.view(*batch.mask.shape, -1))
    return (users * targets).sum(-1).float(), (users.unsqueeze(-2) * negatives).sum(-1).float()


def binary_cross_entropy(scores: Tensor, label: float) -> Tensor:
    """Return the binary cross-entropy of each score, a logit, with the label."""
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, label), reduction="none")


def sequence_item_mask(batch: Batch) -> Tensor:
    """Return which items, coded as in Batch, each user's sequence holds, without padding: bool [B, U + 1]."""
    held = torch.zeros(len(batch.sequences), len(batch.items) + 1, dtype=torch.bool, device=batch.sequences.device)
    held.scatter_(1, batch.sequences, True)
    held[:, 0] = False
    return held
