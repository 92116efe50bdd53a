"""Softmax over the target and sampled negatives: `sampled_softmax` (docs/protocol.md)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from transrec.data.batches import Batch, Sampling
from transrec.models.objectives.base import lookup_embeddings, register, sequence_item_mask, user_vectors
from transrec.models.objectives.scale import ScaledObjective, ScaleOptions
from transrec.options import flag


@dataclass(frozen=True)
class SampledSoftmaxOptions(ScaleOptions):
    _minimum: ClassVar[dict[str, float]] = {"negatives": 1, "popularity_power": 0}

    negatives: int = flag(256, "N, the number of sampled negatives; each is one more item to encode.")
    negatives_per: Literal["batch", "position"] = flag(
        "batch", "Whether all positions of a batch share the negatives, or each position has its own."
    )
    sampler: Literal["uniform", "popularity", "in_batch"] = flag(
        "uniform",
        "How negatives are drawn: uniformly from all items, by training interactions to the power of "
        "--popularity_power, or by how often items occur in the batch's sequences.",
    )
    popularity_power: float = flag(
        0.75, "Exponent of --sampler popularity: 0 is uniform, 1 proportional to interactions."
    )
    logq: bool = flag(True, "Correct the scores of negatives for how often each is drawn (logQ).")


@register("sampled_softmax")
class SampledSoftmaxObjective(ScaledObjective):
    """-log(exp(s+) / (exp(s+) + sum of exp(s_j - log E_j))), with N negatives j outside the user's sequence.

    E_j is the expected number of times that the sample holds item j: N times the probability of a draw. The sum over
    the sample then estimates the sum over all items outside the sequence (Bengio and Senecal, IEEE Transactions on
    Neural Networks 2008). The target is always in the sum, so its score is not corrected. Without `logq` E_j is 1.
    """

    Options = SampledSoftmaxOptions

    def __init__(
        self,
        normalise: bool = False,
        temperature: float = 1.0,
        negatives: int = 256,
        negatives_per: str = "batch",
        sampler: str = "uniform",
        popularity_power: float = 0.75,
        logq: bool = True,
    ):
        super().__init__(normalise, temperature)
        self.count, self.logq, self.are_shared = negatives, logq, negatives_per == "batch"
        self.negatives = 0 if self.are_shared else negatives
        self.sampling = Sampling(sampler, popularity_power, shared=negatives if self.are_shared else 0)

    def __call__(self, embeddings: Tensor, batch: Batch, user_encoder: Callable) -> Tensor:
        users, targets = user_vectors(embeddings, batch, user_encoder)
        with torch.autocast(embeddings.device.type, enabled=False):
            return self._loss(
                self.scoring_embeddings(embeddings.float()), users, self.scoring_embeddings(targets.float()), batch
            )

    def _loss(self, embeddings: Tensor, users: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        owner, position = batch.places
        users, targets = self.scaled_users(users[owner, position]), targets[owner, position]
        held = sequence_item_mask(batch)
        chances = F.pad(batch.log_chance, (1, 0))
        if self.are_shared:
            drawn = batch.shared_negatives
            scores = users @ lookup_embeddings(embeddings, drawn).T
            correction = math.log(self.count) + chances[drawn]
            excluded = held[:, drawn][owner]
        else:
            drawn = batch.negatives.view(*batch.mask.shape, self.count)[owner, position]
            scores = (users.unsqueeze(1) * lookup_embeddings(embeddings, drawn)).sum(-1)
            # Negatives are drawn among the items outside the user's sequence, which raises the chance of each.
            outside = 1 - (held * chances.exp()).sum(1)
            correction = math.log(self.count) + chances[drawn] - outside.clamp(min=1e-6).log()[owner].unsqueeze(1)
            excluded = drawn == 0
        if self.logq:
            scores = scores - correction
        target_scores = (users * targets).sum(-1)
        everything = torch.cat([target_scores.unsqueeze(1), scores.masked_fill(excluded, -torch.inf)], dim=1)
        return (everything.logsumexp(1) - target_scores).sum()
