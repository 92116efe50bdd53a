"""Frozen backbone (`frozen`): nothing is inserted, the projection and the user encoder train."""

from transrec.methods.base import Method, register


@register("frozen")
class Frozen(Method):
    """The backbone is a fixed feature extractor."""

    trains_recommender = True
