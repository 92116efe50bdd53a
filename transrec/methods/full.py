"""Full fine-tuning (`full`): nothing is inserted; all weights train, or only the last blocks of each backbone."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from transrec.methods.base import Method, MethodOptions, last_blocks, parameters_of, register
from transrec.models.backbone import blocks_of
from transrec.models.towers import BackboneTower
from transrec.options import flag


@dataclass(frozen=True)
class FullOptions(MethodOptions):
    _minimum: ClassVar[dict[str, float]] = {"train_last": 0}

    train_last: int = flag(
        0,
        "Train only the last N blocks of each backbone, with the backbone's dropout off; with --cached auto the blocks "
        "below run once per item (0: train the whole backbone).",
    )


@register("full")
class Full(Method):
    """Trains the backbone at --backbone_lr and the rest at --lr."""

    Options = FullOptions
    trains_backbone = True
    trains_recommender = True
    tokenwise = True

    def trainable_backbone_parameters(self, tower: BackboneTower, options: FullOptions) -> Iterable[nn.Parameter]:
        if not options.train_last:
            return super().trainable_backbone_parameters(tower, options)
        flag = f"--train_last {options.train_last}"
        return parameters_of(last_blocks(list(blocks_of(tower.backbone)), options.train_last, flag))
