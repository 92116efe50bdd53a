"""The most popular items for every user: `popularity`."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from transrec.baselines.base import Baseline, register
from transrec.data.features import Features
from transrec.data.interactions import Split
from transrec.training.distributed import World
from transrec.training.evaluation import Scorer


@register("popularity")
class Popularity(Baseline):
    """Ranks items by their number of training interactions."""

    label: ClassVar[str] = "popularity"

    def fit(self, split: Split, parts: Sequence[Features], world: World) -> Scorer:
        counts = torch.from_numpy(split.train_counts()[1:]).float().unsqueeze(1).to(world.device)
        return Scorer(counts, lambda contexts: counts.new_ones(len(contexts), 1))
