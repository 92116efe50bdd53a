"""The base of all formats: where a published dataset keeps its interactions and items, and how to recognise it."""

import fnmatch
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from transrec import options
from transrec.data.tables import COMPRESSED, DECOMPRESSION_ERRORS, Table, unpacked
from transrec.errors import TransrecError, about_file
from transrec.registry import Registry
from transrec.untrusted import check_regular, open_regular

# Images and videos are skipped: a folder may hold a hundred thousand of them.
SKIPPED_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".mp4"}
MAX_DEPTH = 3
HEAD_BYTES = 2**20
# The parts of a publisher's own split: the names used in file names, and the names used here.
PARTS = {"train": "train", "valid": "validation", "test": "test"}
MAX_LISTED = 12


@dataclass(frozen=True)
class Rows:
    """Interactions or items in a table, as SQL expressions over the table's columns, all of which are read as text.

    Attributes:
        columns: SQL expressions by role. For interactions: `user`, `item` and, if the source has them, `time`,
            `rating`, `position` (a whole number that orders rows with equal times) and `part` ("train", "validation"
            or "test" of the publisher's own split). For items: `item` and, if the source has them, `title`, `image`
            (an address) and columns of any other name.
        needs: columns of the table that the expressions read; the import checks that the file has them.
        query: SQL to select from instead of the table itself, such as "(SELECT ... FROM {table})". The `time` and
            `rating` expressions must also be valid for the table itself, where the import looks for malformed values.
        time_unit: unit of numeric times: "s", "ms" or "us"; "" infers it from their size.
        time_format: strptime format of times that are text; "" for ISO 8601.
        optional: further columns that the expressions read, for JSON only; they are null if no row has them.
    """

    table: Table
    columns: dict[str, str]
    needs: tuple[str, ...] = ()
    query: str = "{table}"
    time_unit: str = ""
    time_format: str = ""
    optional: tuple[str, ...] = ()


class Format:
    """Base class of all formats. A format is created from the user's paths and the values of its flags, by name.

    Attributes:
        Options: the dataclass of the format's flags.
        reads: the files that the format reads, in words, for the list of all formats.
        is_general: whether the format is considered only if no other one fits.
        encoding: the encoding of the source's text files that the user names; "" if none.
    """

    Options: type[options.Options] = options.Options
    reads: ClassVar[str] = ""
    is_general: ClassVar[bool] = False
    encoding: str = ""

    def __init__(self, paths: Sequence[Path], **flags: Any):
        self.paths = list(paths)

    @cached_property
    def files(self) -> list[Path]:
        """The given files, and the files in the given folders, without images and videos."""
        return [file for path in self.paths for file in files_in(path)]

    @classmethod
    def recognise(cls, files: Sequence[Path]) -> str:
        """Return why these files are of this format, judging by their names and headers; "" if they are not."""
        return ""

    def interactions(self) -> list[Rows]:
        """Return the rows that hold interactions. If none of them has a time, their order is taken as chronological."""
        raise NotImplementedError

    def items(self) -> list[Rows]:
        """Return the rows that hold items, with or without interactions. Several rows of one item are merged."""
        return []

    def published(self) -> dict[str, int]:
        """Return published counts of rows, by file name, or of "users", "items" and "interactions" in the source."""
        return {}

    def notes(self) -> list[str]:
        """Return sentences for the data card: decisions of the format that a user should know about."""
        return []

    def repeats(self) -> str:
        """Return why one interaction may be read several times, so that duplicates must be dropped; "" if none is."""
        return ""

    def finish(self, folder: Path) -> None:
        """Add further files to the new folder, once its users.tsv, items.tsv and other data files are written."""

    def table(self, path: Path, **how: Any) -> Table:
        """Return the `Table` in a file, read in the encoding that the user names, or otherwise as `how` says."""
        table = Table(path, **how)
        return replace(table, encoding=self.encoding or table.encoding)

    def sequences(self, path: Path) -> Rows:
        """Return the rows of a file without a header, of lines `user<TAB>item item item ...`, in the file's order."""
        split = "list_filter(string_split(trim(items), ' '), lambda one: one <> '')"
        query = f"(SELECT user, unnest({split}) AS item FROM {{table}})"
        table = self.table(path, names=("user", "items"), delimiter="\t", quote="")
        return Rows(table, {"user": "user", "item": "item"}, ("user", "items"), query)

    def all_of(self, *patterns: str, excluding: Sequence[str] = ()) -> list[Path]:
        """Return the files whose names match one of the patterns and none of `excluding`, in the order of `files`."""
        return [path for path in self.files if fits(path, *patterns) and not fits(path, *excluding)]

    def one_of(self, *patterns: str, excluding: Sequence[str] = ()) -> Path:
        """Return the only file whose name matches. Raises TransrecError if no file matches, or several do."""
        matches = self.all_of(*patterns, excluding=excluding)
        if len(matches) == 1:
            return matches[0]
        wanted = " or ".join(patterns)
        if matches:
            raise TransrecError(
                f"{_listed(self.paths)}: several files fit {wanted}: {_listed(matches)}; give the paths of "
                f"those to import"
            )
        available = _listed([Path(path.name) for path in self.files]) or "no files"
        raise TransrecError(f"{_listed(self.paths)}: no file fits {wanted}; what is there: {available}")


FORMATS: Registry[Format] = Registry("format", Format, "transrec.data.formats")
register = FORMATS.register


def recognise(paths: Iterable[Path], general: bool = False, max_depth: int = 1) -> dict[str, str]:
    """Return the names of the formats that fit, each with the reason why it does.

    Args:
        paths: files and folders.
        general: whether to try formats that fit many datasets if no other format fits.
        max_depth: how many levels of folders to search; 1: only files directly in the given folders.
    """
    files = [file for path in paths for file in files_in(path, max_depth)]
    for is_general in (False, True)[: 1 + general]:
        entries = {name: FORMATS.get(name) for name in FORMATS.names()}
        candidates = {name: entry for name, entry in entries.items() if entry.is_general == is_general}
        if reasons := {name: reason for name, entry in candidates.items() if (reason := entry.recognise(files))}:
            return reasons
    return {}


def fits(path: Path, *patterns: str) -> bool:
    """Return whether a file's name, in lower case and without .gz or .zst, matches one of the patterns."""
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return any(fnmatch.fnmatchcase(name, pattern.lower()) for pattern in patterns)


def files_in(path: Path, max_depth: int = MAX_DEPTH) -> list[Path]:
    """Return the file itself, or the files of a folder by name, down to `max_depth` levels; no images or hidden files.

    Raises FileError if the path cannot be read.
    """
    with about_file(path, "check the path", "cannot be read"):
        if not path.is_dir():
            check_regular(path)
            return [path]
        inside = sorted(os.scandir(path), key=lambda entry: (entry.is_dir(), entry.name))
    files = []
    for entry in inside:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            files += files_in(Path(entry.path), max_depth - 1) if max_depth > 1 else []
        elif Path(entry.name).suffix.lower() not in SKIPPED_SUFFIXES:
            files.append(Path(entry.path))
    return files


def head(path: Path, count: int = 1) -> list[str]:
    """Return the first lines of a text file, decompressed and without line ends; none if it cannot be read."""
    try:
        with open_regular(path) as file:
            text = unpacked(file, path).read(HEAD_BYTES).decode("utf-8-sig", errors="replace")
    except (*DECOMPRESSION_ERRORS, OSError, ValueError, TransrecError):
        return []
    return [line.rstrip("\r") for line in text.split("\n")[:count]]


def first_line(path: Path) -> str:
    """Return the first line of a text file, read as in `head`; "" if it cannot be read."""
    return "".join(head(path))


def _listed(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - MAX_LISTED:,} more" if len(paths) > MAX_LISTED else ""
    return ", ".join(map(str, paths[:MAX_LISTED])) + more
