"""Base class and registry of trackers, and the set of trackers of a run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from typing import Any, Self

from transrec.errors import REMEDIES, TransrecError, file_error, reason_of, warn
from transrec.options import Options
from transrec.registry import Choice, Registry


class Tracker:
    """Base class of all trackers. Only the main process creates them.

    The constructor takes the run's folder, and the values of the tracker's flags as keyword arguments.

    Attributes:
        Options: the dataclass of the tracker's flags.
    """

    Options: type[Options] = Options

    def __init__(self, folder: Path, **flags: Any):
        self.folder = folder

    def log(self, epochs: list[dict[str, Any]]) -> None:
        """Called after each epoch.

        Args:
            epochs: the lines of metrics.jsonl, the new one last; in a resumed run they include the earlier epochs.
        """

    def finish(self, result: dict[str, Any]) -> None:
        """Called when the run is complete; `result` is the content of result.json."""

    def close(self) -> None:
        """Called when training has ended, whether it succeeded or not."""


TRACKERS: Registry[Tracker] = Registry("tracker", Tracker, __package__, several=True)
register = TRACKERS.register


class Trackers:
    """The trackers that a run chose. An error in a tracker becomes a one-line TransrecError that names the tracker.

    As a context manager, it closes all trackers on exit, whether or not an error was raised. An error that was raised
    propagates, and failures to close a tracker then become warnings.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: dict[str, Tracker] = {}

    def open(self, choices: Sequence[Choice]) -> None:
        """Create the trackers. Only the main process calls this."""
        for choice in choices:
            with self._report_errors_of(choice.name):
                self._open[choice.name] = choice.build(self.folder)

    def log(self, epochs: list[dict[str, Any]]) -> None:
        """Call `Tracker.log` of every tracker."""
        for name, tracker in self._open.items():
            with self._report_errors_of(name):
                tracker.log(epochs)

    def finish(self, result: dict[str, Any]) -> None:
        """Call `Tracker.finish` of every tracker."""
        for name, tracker in self._open.items():
            with self._report_errors_of(name):
                tracker.finish(result)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, raised: BaseException | None, trace: Any) -> None:
        failures = []
        while self._open:
            name, tracker = self._open.popitem()
            try:
                with self._report_errors_of(name):
                    tracker.close()
            except Exception as error:
                failures.append(error)
        for failure in failures if raised else failures[1:]:
            warn(reason_of(failure))
        if failures and not raised:
            raise failures[0]

    @contextmanager
    def _report_errors_of(self, name: str) -> Iterator[None]:
        try:
            yield
        except (TransrecError, BrokenPipeError, MemoryError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in REMEDIES:
                raise file_error(error, what=f"tracker {name} cannot use it") from error
            # Name a line of the tracker's own file: a line inside a library would not help its author.
            file = TRACKERS.place(name).rpartition(":")[0]
            lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == file]
            place = f"{file}:{lines[-1]}" if lines else TRACKERS.place(name)
            begun = (self.folder / "options.json").exists()
            raise TransrecError(
                f"tracker {name} failed at {place} ({type(error).__name__}: {error}); mend it, or leave it out of "
                f"--tracker" + (f"; what is saved can be continued with --resume {self.folder}" if begun else "")
            ) from error
