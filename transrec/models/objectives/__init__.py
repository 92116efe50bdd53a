"""Registry of training objectives, one file each (docs/protocol.md)."""

from transrec.models.objectives.base import (
    OBJECTIVES,
    NegativesOptions,
    Objective,
    binary,
    held_items,
    pair_scores,
    register,
    take,
    user_vectors,
)

__all__ = [
    "OBJECTIVES",
    "NegativesOptions",
    "Objective",
    "binary",
    "held_items",
    "pair_scores",
    "register",
    "take",
    "user_vectors",
]
