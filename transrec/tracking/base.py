"""What a tracker is."""

from pathlib import Path
from typing import Any

from transrec.options import Options
from transrec.registry import Registry


class Tracker:
    """Base of all trackers, made of the run's folder and the values of its flags by their names, in the main process.

    Attributes:
        Options: the dataclass of its flags.
    """

    Options: type[Options] = Options

    def __init__(self, folder: Path, **flags: Any):
        self.folder = folder

    def log(self, epochs: list[dict[str, Any]]) -> None:
        """An epoch is over.

        Args:
            epochs: the lines of metrics.jsonl, the new one last; a resumed run's earlier ones among them.
        """

    def finish(self, result: dict[str, Any]) -> None:
        """The run is over; `result` is what result.json holds."""

    def close(self) -> None:
        """Training has ended, in whatever way."""


TRACKERS: Registry[Tracker] = Registry("tracker", Tracker, __package__, several=True)
register = TRACKERS.register
