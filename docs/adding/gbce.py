"""gBCE: generalised binary cross-entropy (Petrov and Macdonald, gSASRec, RecSys 2023; `gbce`).

    python finetune.py --plugin docs/adding/gbce.py --objective gbce --negatives 8 --calibration 0.75 ...

With K sampled negatives of n - 1, a share a = K / (n - 1), plain cross-entropy makes the model too sure of positives.
Here the positive's probability is raised to the power a (t (1 - 1 / a) + 1 / a): t = 0 is plain cross-entropy, and at
t = 1 the sigmoid of a score is a calibrated probability again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from transrec.data.batches import Batch
from transrec.errors import TransrecError
from transrec.models.objectives import Objective, register, take, user_vectors
from transrec.options import Options, flag


@dataclass(frozen=True)
class GBCEOptions(Options):
    _minimum: ClassVar[dict[str, float]] = {"negatives": 1, "calibration": 0}

    negatives: int = flag(8, "K, the sampled negatives of each position; each is an item more to encode.")
    calibration: float = flag(0.75, "t of gBCE: 0 is plain binary cross-entropy, 1 makes up for the sampling in full.")

    def __post_init__(self):
        super().__post_init__()
        if self.calibration > 1:
            raise TransrecError(f"--calibration {self.calibration}: must be at most 1")


@register("gbce")
class GBCE(Objective):
    """Each position against K random negatives."""

    Options = GBCEOptions

    def __init__(self, negatives: int = 8, calibration: float = 0.75):
        self.negatives, self.calibration = negatives, calibration

    def __call__(self, embeddings: Tensor, batch: Batch, user_encoder: Callable) -> Tensor:
        users, targets = user_vectors(embeddings, batch, user_encoder)
        # [B, L, K, d], also where K is 1.
        negatives = take(embeddings, batch.negatives.view(*batch.mask.shape, self.negatives))
        positive = (users * targets).sum(-1).float()
        negative = (users.unsqueeze(2) * negatives).sum(-1).float()
        share = self.negatives / (batch.item_count - 1)
        power = share * (self.calibration * (1 - 1 / share) + 1 / share)
        losses = -power * F.logsigmoid(positive) + F.softplus(negative).sum(-1)
        return (losses * batch.mask).sum() / (self.negatives + 1)
