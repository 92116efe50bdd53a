"""Files of hidden states: which there are, what they were made of, when a run last used them; and removing some."""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from transrec.data.states import TOKENS, DamagedStates, read_provenance
from transrec.errors import TransrecError, about_file, printable
from transrec.locks import Lock, remove_unused

# Whole ones, and ones in the making.
PATTERNS = ("states-*.safetensors", ".states-*.safetensors.partial")


@dataclass(frozen=True)
class StoredStates:
    """One file of hidden states.

    Attributes:
        size: in bytes.
        last_used: when a run last opened it, or wrote to it.
        made_of: what its header tells, see `Provenance`; {} of one that is damaged.
    """

    path: Path
    size: int
    last_used: datetime
    made_of: dict[str, Any]

    @property
    def is_whole(self) -> bool:
        """Whether it is finished, not in the making."""
        return self.path.suffix == ".safetensors"

    @property
    def name(self) -> str:
        """The name of the file, finished or to be."""
        return self.path.name.removeprefix(".").removesuffix(".partial")

    def remove(self) -> bool:
        """Remove the file unless a run is using it, or making it; returns whether it is gone.

        Raises FileError when it cannot be removed.
        """
        if self.is_whole:
            return remove_unused(self.path)
        try:
            with closing(Lock(self.path.with_name(f".{self.name}.lock"))), about_file(self.path):
                self.path.unlink(missing_ok=True)
        except BlockingIOError:
            return False
        return True


def find_states(folders: Iterable[Path]) -> list[StoredStates]:
    """All files of hidden states in and below the folders, those last used longest ago first.

    Raises FileError for a folder that cannot be read, TransrecError for one that is not there.
    """
    found: dict[Path, StoredStates] = {}
    for folder in folders:
        if not folder.is_dir():
            raise TransrecError(f"{folder}: no such folder; give one that holds files of hidden states")
        with about_file(folder, what="cannot be read"):
            paths = [path for pattern in PATTERNS for path in folder.rglob(pattern) if path.is_file()]
            for path in paths:
                told = path.stat()
                used = datetime.fromtimestamp(told.st_mtime)
                found[path.resolve()] = StoredStates(path, told.st_size, used, _made_of(path))
    return sorted(found.values(), key=lambda states: (states.last_used, states.path))


def _made_of(path: Path) -> dict[str, Any]:
    try:
        return read_provenance(path)
    except DamagedStates:
        return {}


def listing(files: list[StoredStates]) -> str:
    """A line for each file, by folder: its name, MiB, last use, and what it was made of."""
    lines = []
    width = max((len(of.name) for of in files), default=0)
    for folder in sorted({of.path.parent for of in files}):
        lines.append(str(folder))
        for of in files:
            if of.path.parent == folder:
                used = f"last used {of.last_used:%Y-%m-%d %H:%M}"
                lines.append(f"  {of.name:{width}}  {of.size / 2**20:>9,.1f} MiB  {used}  {_said(of)}")
    return "\n".join(map(printable, lines))


def _said(of: StoredStates) -> str:
    """What a file was made of, for people."""
    told = of.made_of
    if not told:
        return "damaged"
    about = told["about"] if isinstance(told.get("about"), dict) else {}
    encoder = Path(str(about.get("encoder", "another release's"))).name
    if " drawn by " in (weights := str(told.get("weights", ""))):
        encoder += weights[weights.index(" drawn by ") :]
    if about.get("checkpoint"):
        encoder += f" of {about['checkpoint']}"
    layers = told.get("states")
    states = ", ".join(map(str, layers)) if isinstance(layers, list) else layers
    shape = told.get("shape") or ["?"]
    of_what = "tokens" if str(layers).startswith(TOKENS) else "items"
    said = [
        encoder,
        f"states {states}",
        *(f"{name} {told[name]}" for name in ("pooling", "dtype", "precision") if name in told),
        f"{shape[0]} {of_what} of {Path(str(about.get('dataset', '?'))).name}",
    ]
    return "; ".join(said) + ("" if of.is_whole else "; in the making")
