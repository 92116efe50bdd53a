"""What a training objective is, and what several of them share."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from transrec.data.batches import Batch
from transrec.options import Options
from transrec.registry import Registry


class Objective:
    """Base of all objectives; the values of its flags are given to the constructor by their names.

    Attributes:
        Options: the dataclass of its flags.
        negatives: how many sampled negatives the batch must carry for each position.
        last_only: whether only the last position of a sequence predicts.
    """

    Options: type[Options] = Options
    negatives: int = 0
    last_only: ClassVar[bool] = False

    def __call__(self, embeddings: Tensor, batch: Batch, user_encoder: Callable) -> Tensor:
        """The loss, a scalar: summed over the predicting positions; the trainer divides by their number.

        Args:
            embeddings: [U, d] of the batch's distinct items.
            user_encoder: ([B, L, d], mask [B, L]) -> [B, L, d].
        """
        raise NotImplementedError


OBJECTIVES: Registry[Objective] = Registry("objective", Objective, __package__)
register = OBJECTIVES.register


def take(embeddings: Tensor, index: Tensor) -> Tensor:
    """Embeddings [U, d] at `index` coded as in Batch (0 = padding, a zero vector)."""
    return F.pad(embeddings, (0, 0, 1, 0))[index]


def user_vectors(embeddings: Tensor, batch: Batch, user_encoder: Callable) -> tuple[Tensor, Tensor]:
    """User vectors [B, L, d] and target embeddings [B, L, d] (the item after each position)."""
    sequences = take(embeddings, batch.sequences)
    return user_encoder(sequences[:, :-1], batch.mask), sequences[:, 1:]


def _binary(scores: Tensor, label: float, mask: Tensor) -> Tensor:
    scores = scores.float()
    losses = F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, label), reduction="none")
    return (losses * mask).sum()


def contrast(users: Tensor, targets: Tensor, negatives: Tensor, mask: Tensor) -> Tensor:
    """Targets as 1 and negatives as 0, summed over where `mask` [...] is true; the others are [..., d]."""
    return _binary((users * targets).sum(-1), 1.0, mask) + _binary((users * negatives).sum(-1), 0.0, mask)
