"""Frozen backbone (`frozen`): nothing is inserted, and only the projection and the user encoder train."""

from transrec.methods.base import Method, register


@register("frozen")
class Frozen(Method):
    """Uses the backbone as a fixed feature extractor."""

    trains_recommender = True
    tokenwise = True
