"""Baselines by name, one file each: rankings that nothing is trained for."""

from transrec.baselines.base import BASELINES, Baseline, register

__all__ = ["BASELINES", "Baseline", "register"]
