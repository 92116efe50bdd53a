"""Full fine-tuning (`full`): nothing is inserted, everything trains."""

from transrec.methods.base import Method, register


@register("full")
class Full(Method):
    """The backbone trains at --backbone_lr, the rest at --lr."""

    trains_backbone = True
    trains_recommender = True
