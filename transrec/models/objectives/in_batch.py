"""Softmax over the items of the batch: `in_batch` (IISAN; docs/protocol.md)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from transrec.data.batches import Batch
from transrec.models.gathering import gather_rows
from transrec.models.objectives.base import Objective, register, sequence_item_mask, user_vectors
from transrec.models.objectives.softmax import Terms, log_sums
from transrec.options import Options, flag


@dataclass(frozen=True)
class InBatchOptions(Options):
    _minimum: ClassVar[dict[str, float]] = {"softmax_memory": 1}

    gather_items: bool = flag(True, "With several ranks, take candidates from the batches of all ranks.")
    softmax_memory: int = flag(
        64,
        "MiB that the scores of a batch's items may take at once; if they need more, they are computed piecewise.",
    )


@register("in_batch")
class InBatchObjective(Objective):
    """In-batch softmax: softmax over all item slots of the batch, debiased by popularity (IISAN).

    A slot's logit is <h, e> - log popularity. Slots of padding take no part, nor do slots of items in the user's own
    sequence, except the target slot. Slots of the same item share a logit, so each distinct item is scored once and
    weighted by its number of slots: the sum is the same, with fewer columns.
    """

    Options = InBatchOptions

    def __init__(self, gather_items: bool = True, softmax_memory: int = 64):
        """`gather_items`: take the item slots of all ranks as candidates, not only those of this rank."""
        self.gather_items, self.memory = gather_items, softmax_memory * 2**20

    def __call__(self, embeddings: Tensor, batch: Batch, user_encoder: Callable) -> Tensor:
        users, targets = user_vectors(embeddings, batch, user_encoder)
        with torch.autocast(embeddings.device.type, enabled=False):
            return self._loss(embeddings.float(), users.float(), targets.float(), batch)

    def _loss(self, embeddings: Tensor, users: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        log_popularity = F.pad(batch.log_popularity, (1, 0))
        codes = batch.sequences.flatten()
        # Unlike bincount, which reads the largest code, this does not wait for the accelerator.
        slots = codes.new_zeros(len(embeddings) + 1).index_add_(0, codes, torch.ones_like(codes))[1:]
        owner, position = batch.places
        users, targets = users[owner, position], targets[owner, position]
        target_logits = (users * targets).sum(-1) - log_popularity[batch.sequences[:, 1:]][owner, position]

        own_items = batch.items.to(embeddings.device)
        items, slots, prior = own_items, slots * batch.weight, batch.log_popularity
        if self.gather_items:
            embeddings, items, slots, prior = (gather_rows(x) for x in (embeddings, items, slots, prior))
        held = sequence_item_mask(batch)
        # `own_items` is ascending: look up each candidate in it; 0 if it is not there.
        place = torch.searchsorted(own_items, items).clamp(max=len(own_items) - 1)
        place = torch.where(own_items[place] == items, place + 1, 0)
        excluded = held[:, place] | (slots == 0)

        prior = slots.clamp(min=1).log() - prior
        if len(users) * len(embeddings) * users.element_size() > self.memory:
            others = log_sums(users, embeddings, Terms(prior, owner, excluded), self.memory)
            return (torch.logaddexp(target_logits, others) - target_logits).sum()
        logits = users @ embeddings.T + prior
        logits = logits.masked_fill(excluded[owner], -torch.inf)
        everything = torch.cat([target_logits.unsqueeze(1), logits], dim=1)
        return (everything.logsumexp(1) - target_logits).sum()
