"""What a baseline is, and the registry."""

from collections.abc import Sequence
from typing import ClassVar

from transrec.data.features import Features
from transrec.data.interactions import Split
from transrec.options import Options
from transrec.registry import Registry
from transrec.training.distributed import World
from transrec.training.evaluation import Scorer


class Baseline:
    """Base of all baselines, made of the values of its flags by their names.

    Attributes:
        Options: the dataclass of its flags.
        label: what tables call it.
    """

    Options: type[Options] = Options
    label: ClassVar[str]

    def fit(self, split: Split, parts: Sequence[Features], world: World) -> Scorer | None:
        """What scores the items, made of the training interactions alone; None where `parts` do not give it.

        Args:
            parts: what the towers of the run are given, one for each modality; none where one of them runs a backbone.
        """
        raise NotImplementedError


# Every table holds popularity, which a model must beat.
BASELINES: Registry[Baseline] = Registry(
    "baseline", Baseline, "transrec.baselines", flag="baselines", several=True, always=("popularity",)
)
register = BASELINES.register
