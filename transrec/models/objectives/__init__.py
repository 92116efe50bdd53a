"""Registry of training objectives, one file each (docs/protocol.md)."""

from transrec.models.objectives.base import (
    OBJECTIVES,
    NegativesOptions,
    Objective,
    binary_cross_entropy,
    lookup_embeddings,
    pair_scores,
    register,
    sequence_item_mask,
    user_vectors,
)

__all__ = [
    "OBJECTIVES",
    "NegativesOptions",
    "Objective",
    "binary_cross_entropy",
    "lookup_embeddings",
    "pair_scores",
    "register",
    "sequence_item_mask",
    "user_vectors",
]
