"""Scaling of scores, shared by the softmax objectives."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from transrec.errors import TransrecError
from transrec.models.objectives.base import Objective
from transrec.options import Options, flag


@dataclass(frozen=True)
class ScaleOptions(Options):
    normalise: bool = flag(
        False,
        "Score by the cosine of user vector and item embedding instead of their inner product, also in ranking.",
    )
    temperature: float = flag(1.0, "Divide scores by this value in training; 0.05 is usual with --normalise.")

    def __post_init__(self):
        super().__post_init__()
        if self.temperature <= 0:
            raise TransrecError(f"--temperature {self.temperature:g}: scores are divided by it; must be above 0")


class ScaledObjective(Objective):
    """Base of objectives with scores <h, e> / temperature; with `normalise`, vectors have length 1."""

    def __init__(self, normalise: bool, temperature: float):
        self.normalise, self.temperature = normalise, temperature

    def scoring_embeddings(self, embeddings: Tensor) -> Tensor:
        """Return item embeddings [n, d], with length 1 if scores are cosines."""
        return F.normalize(embeddings, dim=-1) if self.normalise else embeddings

    def scoring_users(self, users: Tensor) -> Tensor:
        """Return user vectors [..., d], with length 1 if scores are cosines."""
        return self.scoring_embeddings(users)

    def scaled_users(self, users: Tensor) -> Tensor:
        """Return user vectors [..., d] in float32, whose products with `scoring_embeddings` are the logits."""
        return self.scoring_embeddings(users.float()) / self.temperature
