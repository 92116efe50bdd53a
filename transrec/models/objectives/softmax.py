"""Softmax over the whole catalogue: `softmax` (docs/protocol.md)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from transrec.data.batches import Batch, Sampling
from transrec.models.objectives.base import register, user_vectors
from transrec.models.objectives.scale import ScaledObjective, ScaleOptions
from transrec.options import flag


@dataclass(frozen=True)
class SoftmaxOptions(ScaleOptions):
    _minimum: ClassVar[dict[str, float]] = {"softmax_memory": 1}

    softmax_memory: int = flag(64, "MiB that the scores of all items may take at a time; they are computed piecewise.")


@register("softmax")
class SoftmaxObjective(ScaledObjective):
    """-log softmax of <h_t, e_{t+1}> over the scores of all n items.

    Scores are computed for a chunk of items at a time, and again in the backward pass: beside the n embeddings and
    their gradient, memory does not depend on n. Every item is encoded in every step, so that nothing may train inside a
    backbone.
    """

    Options = SoftmaxOptions
    sampling = Sampling(catalogue=True)

    def __init__(self, normalise: bool = False, temperature: float = 1.0, softmax_memory: int = 64):
        super().__init__(normalise, temperature)
        self.memory = softmax_memory * 2**20

    def __call__(self, embeddings: Tensor, batch: Batch, user_encoder: Callable) -> Tensor:
        users, _ = user_vectors(embeddings, batch, user_encoder)
        with torch.autocast(embeddings.device.type, enabled=False):
            users, targets = self.scaled(users[batch.mask]), batch.sequences[:, 1:][batch.mask] - 1
            return cross_entropy(users, self.scored(embeddings.float()), targets, self.memory).sum()


def cross_entropy(users: Tensor, items: Tensor, targets: Tensor, memory: int) -> Tensor:
    """-log softmax(users @ items.T) at `targets`: float32 [P].

    Args:
        users: float32 [P, d].
        items: float32 [n, d].
        targets: int64 [P], from 0.
        memory: bytes that logits may take at a time; those of at least one item are computed at a time.
    """
    chunk = max(1, memory // (users.element_size() * max(1, len(users))))
    return _CrossEntropy.apply(users, items, targets, min(chunk, len(items)))


class _CrossEntropy(torch.autograd.Function):
    """Keeps the log of each row's sum, from which a chunk's probabilities are computed anew."""

    @staticmethod
    def forward(ctx, users: Tensor, items: Tensor, targets: Tensor, chunk: int) -> Tensor:
        log_sums = users.new_full((len(users),), -torch.inf)
        buffer = users.new_empty(len(users) * chunk)
        for part in items.split(chunk):
            logits = _logits(users, part, buffer)
            largest = torch.maximum(log_sums, logits.amax(1))
            sums = (log_sums - largest).exp() + logits.sub_(largest.unsqueeze(1)).exp_().sum(1)
            log_sums = largest + sums.log()
        ctx.save_for_backward(users, items, targets, log_sums)
        ctx.chunk = chunk
        return log_sums - (users * items[targets]).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        users, items, targets, log_sums = ctx.saved_tensors
        weighted = gradient.unsqueeze(1)
        of_users = -weighted * items[targets]
        of_items = torch.zeros_like(items).index_add_(0, targets, -weighted * users)
        buffer = users.new_empty(len(users) * ctx.chunk)
        for part, of_part in zip(items.split(ctx.chunk), of_items.split(ctx.chunk), strict=True):
            logits = _logits(users, part, buffer)
            probabilities = logits.sub_(log_sums.unsqueeze(1)).exp_().mul_(weighted)
            of_users.addmm_(probabilities, part)
            of_part.addmm_(probabilities.T, users)
        return of_users, of_items, None, None


def _logits(users: Tensor, items: Tensor, buffer: Tensor) -> Tensor:
    return torch.mm(users, items.T, out=buffer[: len(users) * len(items)].view(len(users), len(items)))
