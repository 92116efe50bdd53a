"""A run is a folder: options.json, log.txt, metrics.jsonl, result.json, checkpoints/."""

import json
import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from transrec.errors import FileError, TransrecError, about_file, printable
from transrec.locks import Lock
from transrec.paths import make_folder, resolve, write_text
from transrec.untrusted import check_regular, read_json

# The names of files that `atomic_write` has not finished.
TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


class Run:
    """Reads and writes one run folder; only the main rank writes.

    Raises TransrecError if the folder cannot be written, or if it already holds a run and `resume` is false.
    """

    def __init__(self, folder: Path, is_main: bool = True, resume: bool = False):
        self.folder, self.is_main = folder, is_main
        self.checkpoints = folder / "checkpoints"
        self.best = self.checkpoints / "best.safetensors"
        self.last = self.last_of(folder)
        # Whether the folder holds a run that --resume can continue.
        self.has_begun = (folder / "options.json").exists()
        if not is_main:
            return
        if self.has_begun and not resume:
            raise TransrecError(
                f"{folder}: holds a run already; continue it with --resume {folder}, or give another --output"
            )
        self.is_new = not folder.exists()
        if (log := folder / "log.txt").exists():
            check_regular(log)
        make_folder(self.checkpoints, "--output")
        with about_file(folder):
            self._lock()
            # Temporary files of `atomic_write` or safetensors, left by a process that was killed while it wrote.
            leftovers = [path for path in folder.iterdir() if TEMPORARY.fullmatch(path.name)]
            for leftover in [*leftovers, *self.checkpoints.glob(".*tmp*")]:
                leftover.unlink(missing_ok=True)

    def _lock(self) -> None:
        """Lock the folder until this process ends, so that no other process writes to it."""
        try:
            self._held = Lock(self.folder / ".lock")
        except BlockingIOError as error:
            raise TransrecError(
                f"{self.folder}: another process is running this run; wait for it, or stop it"
            ) from error

    def close(self) -> None:
        """Unlock the folder, and remove it if this object created it and no run has started in it."""
        if self.is_main:
            if self.is_new and not self.has_begun:
                shutil.rmtree(self.folder, ignore_errors=True)
            self._held.close()

    @staticmethod
    def last_of(folder: Path) -> Path:
        """Return the path of the state that --resume reads from a run's folder."""
        return folder / "checkpoints" / "last.safetensors"

    def log(self, text: str = "") -> None:
        """Print a line and append it to log.txt."""
        if self.is_main:
            text = printable(text)
            with about_file("standard output"):
                tqdm.write(text)
            self.note(text)

    def note(self, text: str) -> None:
        """Append a line to log.txt without printing it."""
        if self.is_main:
            path = self.folder / "log.txt"
            with about_file(path), open(path, "a", encoding="utf-8") as file:
                file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {printable(text)}\n")

    def write_options(self, options: dict[str, Any]) -> None:
        self._write_json("options.json", options)
        self.has_begun = True

    def write_metrics(self, epochs: list[dict[str, Any]]) -> None:
        """Rewrite metrics.jsonl with one line per epoch, so that a resumed run leaves no line of an undone epoch."""
        if self.is_main:
            write_text(self.folder / "metrics.jsonl", "".join(json.dumps(epoch) + "\n" for epoch in epochs))

    def write_result(self, result: dict[str, Any]) -> None:
        self._write_json("result.json", result)

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        if self.is_main:
            write_text(self.folder / name, json.dumps(content, indent=2) + "\n")


def read_options(folder: str | Path) -> dict[str, Any]:
    """Return the options that a run was started with, with values that start with ./ as paths inside the folder.

    Raises TransrecError if the folder holds no run, or a damaged one.
    """
    path = resolve(folder) / "options.json"
    try:
        with about_file(path, what="cannot be read"):
            options = read_json(path)
        if not isinstance(options, dict):
            raise ValueError(f"{type(options).__name__} instead of an object")
        return {name: _within(path.parent, value) for name, value in options.items()}
    except FileError as error:
        if path.exists():
            raise
        raise TransrecError(f"{folder}: holds no run (cannot read {path.name}); check the path") from error
    except ValueError as error:
        raise TransrecError(f"{path}: not the options of a run ({error}); restore it, or start a new run") from error


def _within(folder: Path, value: Any) -> Any:
    """Return an option's value, resolving ./ paths, which exported folders contain, against the folder."""
    return str(folder / value) if isinstance(value, str) and value.startswith("./") else value
