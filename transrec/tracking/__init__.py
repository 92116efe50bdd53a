"""Trackers by name, one file each: where a run's metrics go besides its metrics.jsonl, which is always there."""

from transrec.tracking.base import TRACKERS, Tracker, Trackers, register

__all__ = ["TRACKERS", "Tracker", "Trackers", "register"]
