"""Training objectives (docs/protocol.md): sums over predicting positions; the trainer divides by their number.

Every objective takes the embeddings of a batch's distinct items, the batch, and the user encoder. `negatives` says
whether the batch must carry sampled negatives, `last_only` whether only the last position predicts.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from transrec.data.batches import Batch
from transrec.models.gathering import gather_rows


def _take(embeddings: Tensor, index: Tensor) -> Tensor:
    """Embeddings [U, d] at `index` coded as in Batch (0 = padding, a zero vector)."""
    return F.pad(embeddings, (0, 0, 1, 0))[index]


def _user_vectors(embeddings: Tensor, batch: Batch, user_encoder: Callable) -> tuple[Tensor, Tensor]:
    """User vectors [B, L, d] and target embeddings [B, L, d] (the item after each position)."""
    sequences = _take(embeddings, batch.sequences)
    return user_encoder(sequences[:, :-1], batch.mask), sequences[:, 1:]


def _binary(scores: Tensor, label: float, mask: Tensor) -> Tensor:
    scores = scores.float()
    losses = F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, label), reduction="none")
    return (losses * mask).sum()


def _contrast(users: Tensor, targets: Tensor, negatives: Tensor, mask: Tensor) -> Tensor:
    """Targets as 1 and negatives as 0, summed over where `mask` [...] is true; the others are [..., d]."""
    return _binary((users * targets).sum(-1), 1.0, mask) + _binary((users * negatives).sum(-1), 0.0, mask)


class SASRecObjective:
    """Each position against one random negative: BCE on <h_t, e_{t+1}> = 1 and <h_t, e_neg> = 0 (Adapter4Rec)."""

    negatives = True
    last_only = False

    def __call__(self, embeddings: Tensor, batch: Batch, user_encoder: Callable) -> Tensor:
        users, targets = _user_vectors(embeddings, batch, user_encoder)
        return _contrast(users, targets, _take(embeddings, batch.negatives), batch.mask)


class CPCObjective:
    """As SASRecObjective, but only the last position predicts the last item (Adapter4Rec)."""

    negatives = True
    last_only = True

    def __call__(self, embeddings: Tensor, batch: Batch, user_encoder: Callable) -> Tensor:
        users, targets = _user_vectors(embeddings, batch, user_encoder)
        negatives = _take(embeddings, batch.negatives[:, -1])
        return _contrast(users[:, -1], targets[:, -1], negatives, batch.mask[:, -1])


class InBatchObjective:
    """Softmax over all item slots of the batch, debiased by popularity (IISAN).

    A slot's logit is <h, e> - log popularity. Slots of padding and of items that the user's own sequence holds, the
    target slot aside, take no part. Slots of one item share a logit, so each distinct item is scored once and
    weighted by its number of slots: the same sum from fewer columns.
    """

    negatives = False
    last_only = False

    def __init__(self, gather: bool = True):
        """`gather`: take the item slots of all ranks, not only this one's, as candidates."""
        self.gather = gather

    def __call__(self, embeddings: Tensor, batch: Batch, user_encoder: Callable) -> Tensor:
        users, targets = _user_vectors(embeddings, batch, user_encoder)
        with torch.autocast(embeddings.device.type, enabled=False):
            return self._loss(embeddings.float(), users.float(), targets.float(), batch)

    def _loss(self, embeddings: Tensor, users: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        log_popularity = F.pad(batch.log_popularity, (1, 0))
        slots = torch.bincount(batch.sequences.flatten(), minlength=len(embeddings) + 1)[1:]
        owner, position = batch.mask.nonzero(as_tuple=True)
        users, targets = users[owner, position], targets[owner, position]
        target_logits = (users * targets).sum(-1) - log_popularity[batch.sequences[:, 1:]][owner, position]

        own_items = batch.items.to(embeddings.device)
        items, slots, prior = own_items, slots * batch.weight, batch.log_popularity
        if self.gather:
            embeddings, items, slots, prior = (gather_rows(x) for x in (embeddings, items, slots, prior))
        held = torch.zeros(len(batch.sequences), len(own_items) + 1, dtype=torch.bool, device=embeddings.device)
        held.scatter_(1, batch.sequences, True)
        # `own_items` is ascending: look each candidate up in it, and miss where it is not there.
        place = torch.searchsorted(own_items, items).clamp(max=len(own_items) - 1)
        place = torch.where(own_items[place] == items, place + 1, 0)
        held[:, 0] = False
        excluded = held[:, place] | (slots == 0)

        logits = users @ embeddings.T + (slots.clamp(min=1).log() - prior)
        logits = logits.masked_fill(excluded[owner], -torch.inf)
        everything = torch.cat([target_logits.unsqueeze(1), logits], dim=1)
        return (everything.logsumexp(1) - target_logits).sum()


OBJECTIVES = {"sasrec": SASRecObjective, "cpc": CPCObjective, "in_batch": InBatchObjective}
