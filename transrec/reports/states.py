"""List the files of hidden states with their origin and last use, and remove files."""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from transrec.data.states import TOKENS, DamagedStates, read_provenance
from transrec.errors import TransrecError, about_file, printable
from transrec.locks import Lock, remove_unused

# Finished files, and files still being written.
PATTERNS = ("states-*.safetensors", ".states-*.safetensors.partial")


@dataclass(frozen=True)
class StoredStates:
    """One file of hidden states.

    Attributes:
        size: file size in bytes.
        last_used: the last time that a run opened the file or wrote to it.
        provenance: the provenance in the file's header, see `Provenance`; {} if the file is damaged.
    """

    path: Path
    size: int
    last_used: datetime
    provenance: dict[str, Any]

    @property
    def is_finished(self) -> bool:
        """Return whether the file is finished, not still being written."""
        return self.path.suffix == ".safetensors"

    @property
    def name(self) -> str:
        """The name that the file has, or will have, once it is finished."""
        return self.path.name.removeprefix(".").removesuffix(".partial")

    def remove(self) -> bool:
        """Remove the file unless a run is using or writing it; returns whether it is gone.

        Raises FileError if the file cannot be removed.
        """
        if self.is_finished:
            return remove_unused(self.path)
        try:
            with closing(Lock(self.path.with_name(f".{self.name}.lock"))), about_file(self.path):
                self.path.unlink(missing_ok=True)
        except BlockingIOError:
            return False
        return True


def find_states(folders: Iterable[Path]) -> list[StoredStates]:
    """Return all files of hidden states in and below the folders, the least recently used first.

    Raises FileError for a folder that cannot be read, and TransrecError for a folder that does not exist.
    """
    by_path: dict[Path, StoredStates] = {}
    for folder in folders:
        if not folder.is_dir():
            raise TransrecError(f"{folder}: no such folder; give one that holds files of hidden states")
        with about_file(folder, what="cannot be read"):
            paths = [path for pattern in PATTERNS for path in folder.rglob(pattern) if path.is_file()]
            for path in paths:
                status = path.stat()
                used = datetime.fromtimestamp(status.st_mtime)
                by_path[path.resolve()] = StoredStates(path, status.st_size, used, _read_provenance(path))
    return sorted(by_path.values(), key=lambda states: (states.last_used, states.path))


def _read_provenance(path: Path) -> dict[str, Any]:
    try:
        return read_provenance(path)
    except DamagedStates:
        return {}


def listing(files: list[StoredStates]) -> str:
    """Return a line for each file, by folder: its name, MiB, last use and provenance."""
    lines = []
    width = max((len(file.name) for file in files), default=0)
    for folder in sorted({file.path.parent for file in files}):
        lines.append(str(folder))
        for file in files:
            if file.path.parent == folder:
                used = f"last used {file.last_used:%Y-%m-%d %H:%M}"
                lines.append(f"  {file.name:{width}}  {file.size / 2**20:>9,.1f} MiB  {used}  {_provenance_text(file)}")
    return "\n".join(map(printable, lines))


def _provenance_text(file: StoredStates) -> str:
    """Return a file's provenance in words."""
    provenance = file.provenance
    if not provenance:
        return "damaged"
    about = provenance["about"] if isinstance(provenance.get("about"), dict) else {}
    encoder = Path(str(about.get("encoder", "another release's"))).name
    if " drawn by " in (weights := str(provenance.get("weights", ""))):
        encoder += weights[weights.index(" drawn by ") :]
    if about.get("checkpoint"):
        encoder += f" of {about['checkpoint']}"
    layers = provenance.get("states")
    states = ", ".join(map(str, layers)) if isinstance(layers, list) else layers
    shape = provenance.get("shape") or ["?"]
    of_what = "tokens" if str(layers).startswith(TOKENS) else "items"
    parts = [
        encoder,
        f"states {states}",
        *(f"{name} {provenance[name]}" for name in ("pooling", "dtype", "precision") if name in provenance),
        f"{shape[0]} {of_what} of {Path(str(about.get('dataset', '?'))).name}",
    ]
    return "; ".join(parts) + ("" if file.is_finished else "; in the making")
