"""Training objectives by name (docs/protocol.md), one file each."""

from transrec.models.objectives.base import OBJECTIVES, Objective, contrast, register, take, user_vectors

__all__ = ["OBJECTIVES", "Objective", "contrast", "register", "take", "user_vectors"]
