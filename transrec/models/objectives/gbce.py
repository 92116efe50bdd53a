"""Generalised binary cross-entropy: `gbce` (Petrov and Macdonald, gSASRec, RecSys 2023; docs/protocol.md)."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from transrec.data.batches import Batch
from transrec.errors import TransrecError
from transrec.models.objectives.base import NegativesOptions, Objective, pair_scores, register
from transrec.options import flag


@dataclass(frozen=True)
class GBCEOptions(NegativesOptions):
    negatives: int = flag(
        16,
        "K, the number of sampled negatives per position; each adds an item to encode. gSASRec uses 256 over item IDs.",
    )
    calibration: float = flag(0.75, "t of gBCE: 0 is plain binary cross-entropy, 1 corrects fully for the sampling.")

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.calibration <= 1:
            raise TransrecError(f"--calibration {self.calibration}: must be at least 0 and at most 1")


@register("gbce")
class GBCEObjective(Objective):
    """Binary cross-entropy with the positive probability raised to the power a (t (1 - 1 / a) + 1 / a).

    K of n - 1 negatives are sampled, a share a = K / (n - 1), which makes plain cross-entropy overconfident about
    positives. At t = 0 the power is 1, which is plain cross-entropy. At t = 1 the power is a, and the sigmoid of a
    score is a calibrated probability again. The loss is the mean over the target and its K negatives.
    """

    Options = GBCEOptions

    def __init__(self, negatives: int = 16, calibration: float = 0.75):
        self.negatives, self.calibration = negatives, calibration

    def __call__(self, embeddings: Tensor, batch: Batch, user_encoder: Callable) -> Tensor:
        targets, negatives = pair_scores(embeddings, batch, user_encoder)
        share = self.negatives / (batch.item_count - 1)
        power = share * (self.calibration * (1 - 1 / share) + 1 / share)
        losses = -power * F.logsigmoid(targets) + F.softplus(negatives).sum(-1)
        return (losses * batch.mask).sum() / (self.negatives + 1)
