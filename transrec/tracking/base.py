"""What a tracker is."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transrec.errors import TransrecError, about_file
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


@contextmanager
def naming(tracker: type[Tracker], folder: Path) -> Iterator[None]:
    """Within, what a tracker of the run in `folder` raises is one line that names it and where it failed."""
    try:
        with about_file(folder):
            yield
    except (TransrecError, BrokenPipeError, MemoryError):
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise TransrecError(
            f"tracker {tracker.__name__} failed at {frame.filename}:{frame.lineno} ({type(error).__name__}: {error}); "
            f"mend it, or leave it out of --tracker; what is saved can be continued with --resume {folder}"
        ) from error


TRACKERS: Registry[Tracker] = Registry("tracker", Tracker, __package__, several=True)
register = TRACKERS.register
