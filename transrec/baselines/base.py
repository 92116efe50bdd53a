"""Base class and registry of baselines."""

from collections.abc import Sequence
from typing import ClassVar

from transrec.data.features import Features
from transrec.data.interactions import Split
from transrec.options import Options
from transrec.registry import Registry
from transrec.training.distributed import World
from transrec.training.evaluation import Scorer


class Baseline:
    """Base class of all baselines. The constructor takes the values of the baseline's flags as keyword arguments.

    Attributes:
        Options: the dataclass of the baseline's flags.
        label: the name of the baseline in tables.
    """

    Options: type[Options] = Options
    label: ClassVar[str]

    def fit(self, split: Split, parts: Sequence[Features], world: World) -> Scorer | None:
        """Return a scorer of the items, built from the training interactions alone; None if `parts` do not suffice.

        Args:
            parts: the features that the run's towers read, one for each modality; empty if any tower runs a backbone.
        """
        raise NotImplementedError


# Every table includes popularity, which a model must beat.
BASELINES: Registry[Baseline] = Registry(
    "baseline", Baseline, "transrec.baselines", flag="baselines", several=True, always=("popularity",)
)
register = BASELINES.register
