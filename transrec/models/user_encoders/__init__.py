"""Registry of user encoders, one file each."""

from transrec.models.user_encoders.base import USER_ENCODERS, UserEncoder, register

__all__ = ["USER_ENCODERS", "UserEncoder", "register"]
