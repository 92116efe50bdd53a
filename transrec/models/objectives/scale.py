"""What the softmax objectives share: how scores are scaled."""

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
        "Score by the cosine of user vector and item embedding, not by their product; in ranking too.",
    )
    temperature: float = flag(1.0, "Scores are divided by this in training; 0.05 is usual under --normalise.")

    def __post_init__(self):
        super().__post_init__()
        if self.temperature <= 0:
            raise TransrecError(f"--temperature {self.temperature:g}: scores are divided by it; must be above 0")


class ScaledObjective(Objective):
    """An objective of scores <h, e> / temperature, of vectors of length 1 if they are normalised."""

    def __init__(self, normalise: bool, temperature: float):
        self.normalise, self.temperature = normalise, temperature

    def scored(self, embeddings: Tensor) -> Tensor:
        """Of length 1 where scores are cosines."""
        return F.normalize(embeddings, dim=-1) if self.normalise else embeddings

    def scaled(self, users: Tensor) -> Tensor:
        """User vectors [..., d], in float32, so that their products with `scored` embeddings are the logits."""
        return self.scored(users.float()) / self.temperature
