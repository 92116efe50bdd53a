"""Paths given by users, the repository's own folders, and atomic writing."""

import hashlib
import os
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from transrec.errors import about_file, file_error
from transrec.untrusted import open_regular

REPOSITORY = Path(__file__).resolve().parents[1]


def resolve(path: str | Path) -> Path:
    """Return the absolute form of a path given by a user.

    A relative path is taken from the repository if it exists only there, and from the current folder otherwise.
    """
    path = Path(path).expanduser()
    start = Path.cwd() if path.exists() or not (REPOSITORY / path).exists() else REPOSITORY
    return Path(os.path.normpath(start / path))


def default_runs_folder() -> Path:
    """Return `runs/` in the repository if transrec runs from a checkout, else `runs/` in the current folder."""
    return (REPOSITORY if (REPOSITORY / "setup.py").exists() else Path.cwd()) / "runs"


def make_folder(folder: Path, flag: str) -> None:
    """Create `folder` if needed and check that files can be written in it.

    Raises TransrecError naming `flag` if that is impossible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            pass
    except OSError as error:
        raise file_error(error, folder, f"give another folder with {flag}", "cannot write there") from error


@contextmanager
def atomic_write(path: Path):
    """Yield a temporary path next to `path`; on success, flush the temporary file to disk and rename it to `path`.

    Raises FileError naming `path` if it, or anything in the block, cannot be written; an existing file is then kept.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with about_file(path):
            yield temporary
            # Windows flushes only files that are open for writing.
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())
            # Set the permissions of any other new file, because some writers make files that only their owner can
            # read. Some file systems have no permissions.
            os.umask(umask := os.umask(0))
            with suppress(OSError):
                temporary.chmod(0o666 & ~umask)
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, either completely or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes. Raises FileError if the file cannot be read."""
    with about_file(path, what="cannot be read"), open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
