"""Bayesian personalised ranking at every position: `bpr` (Rendle et al., UAI 2009; docs/protocol.md)."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from transrec.data.batches import Batch
from transrec.models.objectives.base import NegativesOptions, Objective, pair_scores, register


@register("bpr")
class BPRObjective(Objective):
    """-log sigmoid(<h_t, e_{t+1}> - <h_t, e_neg>), averaged over K random negatives."""

    Options = NegativesOptions

    def __init__(self, negatives: int = 1):
        self.negatives = negatives

    def __call__(self, embeddings: Tensor, batch: Batch, user_encoder: Callable) -> Tensor:
        targets, negatives = pair_scores(embeddings, batch, user_encoder)
        return (-F.logsigmoid(targets.unsqueeze(-1) - negatives).mean(-1) * batch.mask).sum()
