"""Registry of baselines, one file each: rankings that need no trained model."""

from transrec.baselines.base import BASELINES, Baseline, register

__all__ = ["BASELINES", "Baseline", "register"]
