"""Paths: those that users give, the repository's own folders, and atomic writing."""

import hashlib
import os
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from transrec.errors import about_file, file_error
from transrec.untrusted import open_regular

REPOSITORY = Path(__file__).resolve().parents[1]


def resolve(path: str | Path) -> Path:
    """A user's path: absolute, else against the current folder if it exists there, else against the repository."""
    path = Path(path).expanduser()
    start = Path.cwd() if path.exists() or not (REPOSITORY / path).exists() else REPOSITORY
    return Path(os.path.normpath(start / path))


def default_runs_folder() -> Path:
    """`runs/` of the repository when run from a checkout, of the current folder when installed elsewhere."""
    return (REPOSITORY if (REPOSITORY / "setup.py").exists() else Path.cwd()) / "runs"


def make_folder(folder: Path, flag: str) -> None:
    """Create `folder` if needed and prove it can be written.

    Raises TransrecError naming `flag` when it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            pass
    except OSError as error:
        raise file_error(error, folder, f"give another folder with {flag}", "cannot write there") from error


@contextmanager
def atomic_write(path: Path):
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed over `path`.

    Raises FileError naming `path` when it, or anything within, cannot be written; the file that was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with about_file(path):
            yield temporary
            # Windows flushes only what may be written.
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())
            # As any other new file: some writers make theirs readable by their owner alone, and some file systems
            # know no permissions.
            os.umask(umask := os.umask(0))
            with suppress(OSError):
                temporary.chmod(0o666 & ~umask)
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes. Raises FileError when it cannot be read."""
    with about_file(path, what="cannot be read"), open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
