"""Registry of trackers, one file each: destinations of a run's metrics in addition to metrics.jsonl."""

from transrec.tracking.base import TRACKERS, Tracker, Trackers, register

__all__ = ["TRACKERS", "Tracker", "Trackers", "register"]
