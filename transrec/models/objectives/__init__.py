"""Training objectives by name (docs/protocol.md), one file each."""

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
