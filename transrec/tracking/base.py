"""What a tracker is."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from typing import Any, Self

from transrec.errors import REMEDIES, TransrecError, file_error, reason_of, warn
from transrec.options import Options
from transrec.registry import Choice, Registry


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


class Trackers:
    """Those that a run chose. What one of them raises becomes a TransrecError of one line that names it.

    As a context, closes all when it is left, whatever is raised: an error that was on its way goes on, and what fails
    while they close is then a warning.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: dict[str, Tracker] = {}

    def open(self, choices: Sequence[Choice]) -> None:
        """Make the trackers, of the main process alone."""
        for choice in choices:
            with self._naming(choice.name):
                self._open[choice.name] = choice.build(self.folder)

    def log(self, epochs: list[dict[str, Any]]) -> None:
        """As `Tracker.log`."""
        for name, tracker in self._open.items():
            with self._naming(name):
                tracker.log(epochs)

    def finish(self, result: dict[str, Any]) -> None:
        """As `Tracker.finish`."""
        for name, tracker in self._open.items():
            with self._naming(name):
                tracker.finish(result)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, raised: BaseException | None, trace: Any) -> None:
        failures = []
        while self._open:
            name, tracker = self._open.popitem()
            try:
                with self._naming(name):
                    tracker.close()
            except Exception as error:
                failures.append(error)
        for failure in failures if raised else failures[1:]:
            warn(reason_of(failure))
        if failures and not raised:
            raise failures[0]

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        try:
            yield
        except (TransrecError, BrokenPipeError, MemoryError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in REMEDIES:
                raise file_error(error, what=f"tracker {name} cannot use it") from error
            # A library's own line would say nothing to those who can mend the tracker.
            file = TRACKERS.place(name).rpartition(":")[0]
            lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == file]
            place = f"{file}:{lines[-1]}" if lines else TRACKERS.place(name)
            begun = (self.folder / "options.json").exists()
            raise TransrecError(
                f"tracker {name} failed at {place} ({type(error).__name__}: {error}); mend it, or leave it out of "
                f"--tracker" + (f"; what is saved can be continued with --resume {self.folder}" if begun else "")
            ) from error
