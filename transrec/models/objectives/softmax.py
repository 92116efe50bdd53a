"""Softmax over the full catalogue: `softmax` (docs/protocol.md)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from transrec.data.batches import Batch, Sampling
from transrec.models.objectives.base import register, user_vectors
from transrec.models.objectives.scale import ScaledObjective, ScaleOptions
from transrec.options import flag

# A finite lower bound for logits that may all be minus infinity.
LEAST = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class SoftmaxOptions(ScaleOptions):
    _minimum: ClassVar[dict[str, float]] = {"softmax_memory": 1}

    softmax_memory: int = flag(64, "MiB that the scores of all items may take at once; they are computed piecewise.")


@register("softmax")
class SoftmaxObjective(ScaledObjective):
    """-log softmax of <h_t, e_{t+1}> over the scores of all n items.

    Scores are computed for one chunk of items after another, and again in the backward pass. Apart from the n
    embeddings and their gradient, memory does not depend on n. Every item is encoded in every step, so nothing may
    train inside a backbone.
    """

    Options = SoftmaxOptions
    sampling = Sampling(catalogue=True)

    def __init__(self, normalise: bool = False, temperature: float = 1.0, softmax_memory: int = 64):
        super().__init__(normalise, temperature)
        self.memory = softmax_memory * 2**20

    def __call__(self, embeddings: Tensor, batch: Batch, user_encoder: Callable) -> Tensor:
        users, _ = user_vectors(embeddings, batch, user_encoder)
        with torch.autocast(embeddings.device.type, enabled=False):
            users, targets = self.scaled_users(users[batch.places]), batch.sequences[:, 1:][batch.places] - 1
            return cross_entropy(users, self.scoring_embeddings(embeddings.float()), targets, self.memory).sum()


def cross_entropy(users: Tensor, items: Tensor, targets: Tensor, memory: int) -> Tensor:
    """Return -log softmax(users @ items.T) at `targets`: float32 [P].

    Args:
        users: float32 [P, d].
        items: float32 [n, d].
        targets: int64 [P], from 0.
        memory: bytes that logits may take at once; a chunk has at least one item.
    """
    return _CrossEntropy.apply(users, items, targets, _chunk(users, items, memory))


@dataclass(frozen=True)
class Terms:
    """Priors and exclusions that apply to logits <h, e>.

    Attributes:
        prior: float32 [n], added to the logits of each item; it has no gradient.
        owner: int64 [P], the row of `excluded` that belongs to each user vector.
        excluded: bool [B, n], the items that take no part.
    """

    prior: Tensor
    owner: Tensor
    excluded: Tensor

    def apply_to(self, logits: Tensor, first: int) -> Tensor:
        """Apply the terms in place to logits [P, c] of the items from `first` on; excluded items get minus infinity."""
        part = slice(first, first + logits.shape[1])
        return logits.add_(self.prior[part]).masked_fill_(self.excluded[:, part][self.owner], -torch.inf)


def log_sums(users: Tensor, items: Tensor, terms: Terms, memory: int) -> Tensor:
    """Return the log of the sum of exp over each row of users @ items.T with its terms: float32 [P].

    A row without items gives minus infinity. The other arguments are those of `cross_entropy`.
    """
    return _LogSums.apply(users, items, terms, _chunk(users, items, memory))


class _CrossEntropy(torch.autograd.Function):
    """Saves the log of each row's sum, from which the backward pass recomputes the probabilities of a chunk."""

    @staticmethod
    def forward(ctx, users: Tensor, items: Tensor, targets: Tensor, chunk: int) -> Tensor:
        sums = _sum_up(users, items, chunk)
        ctx.save_for_backward(users, items, targets, sums)
        ctx.chunk = chunk
        return sums - (users * items[targets]).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        users, items, targets, sums = ctx.saved_tensors
        weighted = gradient.unsqueeze(1)
        users_gradient = -weighted * items[targets]
        items_gradient = torch.zeros_like(items).index_add_(0, targets, -weighted * users)
        for first, logits in _chunks(users, items, ctx.chunk):
            probabilities = logits.sub_(sums.unsqueeze(1)).exp_().mul_(weighted)
            _add_gradients(probabilities, first, users, items, users_gradient, items_gradient)
        return users_gradient, items_gradient, None, None


class _LogSums(torch.autograd.Function):
    """Saves the log of each row's sum, as `_CrossEntropy` does."""

    @staticmethod
    def forward(ctx, users: Tensor, items: Tensor, terms: Terms, chunk: int) -> Tensor:
        sums = _sum_up(users, items, chunk, terms)
        ctx.save_for_backward(users, items, sums)
        ctx.terms, ctx.chunk = terms, chunk
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        users, items, sums = ctx.saved_tensors
        # In a row without items all probabilities are 0.
        sums, weighted = sums.clamp(min=LEAST).unsqueeze(1), gradient.unsqueeze(1)
        users_gradient, items_gradient = torch.zeros_like(users), torch.zeros_like(items)
        for first, logits in _chunks(users, items, ctx.chunk, ctx.terms):
            probabilities = logits.sub_(sums).exp_().mul_(weighted)
            _add_gradients(probabilities, first, users, items, users_gradient, items_gradient)
        return users_gradient, items_gradient, None, None


def _chunk(users: Tensor, items: Tensor, memory: int) -> int:
    """Return the number of items whose logits are computed at once."""
    return min(max(1, memory // (users.element_size() * max(1, len(users)))), len(items))


def _sum_up(users: Tensor, items: Tensor, chunk: int, terms: Terms | None = None) -> Tensor:
    """Return the log of the sum of exp over each user's logits, [P]."""
    sums = users.new_full((len(users),), -torch.inf)
    for _, logits in _chunks(users, items, chunk, terms):
        # Kept finite, because minus infinity less itself is NaN.
        largest = torch.maximum(sums, logits.amax(1)).clamp(min=LEAST)
        sums = largest + ((sums - largest).exp() + logits.sub_(largest.unsqueeze(1)).exp_().sum(1)).log()
    return sums


def _chunks(users: Tensor, items: Tensor, chunk: int, terms: Terms | None = None) -> Iterator[tuple[int, Tensor]]:
    """Yield each chunk's first item and the logits [P, c] of its items; all chunks share one buffer."""
    buffer = users.new_empty(len(users) * chunk)
    for first in range(0, len(items), chunk):
        part = items[first : first + chunk]
        logits = torch.mm(users, part.T, out=buffer[: len(users) * len(part)].view(len(users), len(part)))
        yield first, terms.apply_to(logits, first) if terms else logits


def _add_gradients(
    logits_gradient: Tensor, first: int, users: Tensor, items: Tensor, users_gradient: Tensor, items_gradient: Tensor
) -> None:
    """Add to the gradients of users and items those that flow from logits [P, c] of the items from `first` on."""
    part = slice(first, first + logits_gradient.shape[1])
    users_gradient.addmm_(logits_gradient, items[part])
    items_gradient[part].addmm_(logits_gradient.T, users)
