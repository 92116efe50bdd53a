"""What a format is: where a published dataset keeps its interactions and its items, and how it is recognised."""

import fnmatch
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from transrec import options
from transrec.data.tables import COMPRESSED, DAMAGED, Table, unpacked
from transrec.errors import TransrecError, about_file
from transrec.registry import Registry
from transrec.untrusted import check_regular, open_regular

# Images, of which there may be a hundred thousand.
NOT_READ = {".jpg", ".jpeg", ".png", ".webp", ".mp4"}
DEEPEST = 3
HEAD_BYTES = 2**20
# What publishers call the parts of a split of their own, and what these are called here.
PARTS = {"train": "train", "valid": "validation", "test": "test"}
SHOWN = 12


@dataclass(frozen=True)
class Rows:
    """Rows of a table by what they mean to the import: SQL expressions over the table's columns, all of them texts.

    Attributes:
        columns: of interactions, the expressions of `user` and `item`, and of what there is of `time`, `rating`,
            `position` (a whole number, the order at equal times) and `part` ("train", "validation" or "test" of the
            publisher's own split). Of items, `item`, and what there is of `title`, `image` (an address) and columns of
            any other name.
        needs: names of the table's columns that the expressions read; the file is checked for them.
        query: what stands in place of the table, as "(SELECT ... FROM {table})"; `time` and `rating` must be columns
            of the table nevertheless, where a mistake is looked for.
        time_unit: "s", "ms" or "us" of times that are numbers; "" for what their size says.
        time_format: of times that are text, as strptime has it; "" for ISO 8601.
        optional: names of further columns that the expressions read, of JSON alone: empty where no row has them.
    """

    table: Table
    columns: dict[str, str]
    needs: tuple[str, ...] = ()
    query: str = "{table}"
    time_unit: str = ""
    time_format: str = ""
    optional: tuple[str, ...] = ()


class Format:
    """Base of all formats, made of the paths that the user gives and the values of its flags by their names.

    Attributes:
        Options: the dataclass of its flags.
        reads: what it reads, for a list of all formats.
        is_general: whether it is taken for a dataset's format only if no other is.
    """

    Options: type[options.Options] = options.Options
    reads: ClassVar[str] = ""
    is_general: ClassVar[bool] = False

    def __init__(self, paths: Sequence[Path], **flags: Any):
        self.paths = list(paths)

    @cached_property
    def files(self) -> list[Path]:
        """The files given, and those in the folders given; images left out."""
        return [file for path in self.paths for file in files_in(path)]

    @classmethod
    def recognise(cls, files: Sequence[Path]) -> str:
        """Why these files are of this format: what of their names and headers says so; "" if they are not."""
        return ""

    def interactions(self) -> list[Rows]:
        """The rows that hold interactions. Where none has a time, their order is the order in time."""
        raise NotImplementedError

    def items(self) -> list[Rows]:
        """The rows that hold items, of which users touch some; several rows of an item are joined."""
        return []

    def published(self) -> dict[str, int]:
        """What the publisher counts: rows, by the name of a file, or "users", "items" and "interactions" as read."""
        return {}

    def notes(self) -> list[str]:
        """Sentences for the data card: what the format decides and a user should know."""
        return []

    def finish(self, folder: Path) -> None:
        """Everything is written, users.tsv and items.tsv among it: add further files to the new folder."""

    def all_of(self, *patterns: str, besides: Sequence[str] = ()) -> list[Path]:
        """The files whose names fit one of the patterns, and none of `besides`, in the order given, or by name."""
        return [path for path in self.files if fits(path, *patterns) and not fits(path, *besides)]

    def one_of(self, *patterns: str, besides: Sequence[str] = ()) -> Path:
        """The only file whose name fits. Raises TransrecError where there is none, or several."""
        found = self.all_of(*patterns, besides=besides)
        if len(found) == 1:
            return found[0]
        wanted = " or ".join(patterns)
        if found:
            raise TransrecError(
                f"{_listed(self.paths)}: several files fit {wanted}: {_listed(found)}; give the paths of "
                f"those to import"
            )
        there = _listed([Path(path.name) for path in self.files]) or "no files"
        raise TransrecError(f"{_listed(self.paths)}: no file fits {wanted}; what is there: {there}")


FORMATS: Registry[Format] = Registry("format", Format, "transrec.data.formats")
register = FORMATS.register


def recognise(paths: Iterable[Path], general: bool = False, deepest: int = 1) -> dict[str, str]:
    """Why each format that fits thinks so, by its name.

    Args:
        paths: files, and folders.
        general: whether formats that fit many datasets are asked where no other fits.
        deepest: down to which floor files of folders are looked at; 1: those that lie in them directly.
    """
    files = [file for path in paths for file in files_in(path, deepest)]
    for is_general in (False, True)[: 1 + general]:
        entries = {name: FORMATS.get(name) for name in FORMATS.names()}
        asked = {name: entry for name, entry in entries.items() if entry.is_general == is_general}
        if whys := {name: why for name, entry in asked.items() if (why := entry.recognise(files))}:
            return whys
    return {}


def sequences(path: Path) -> Rows:
    """Rows of a file of `user<TAB>item item item ...` a line, which has no header; the order is that in the file."""
    read = "list_filter(string_split(trim(items), ' '), lambda one: one <> '')"
    each = f"(SELECT user, unnest({read}) AS item FROM {{table}})"
    table = Table(path, names=("user", "items"), delimiter="\t", quote="")
    return Rows(table, {"user": "user", "item": "item"}, ("user", "items"), each)


def fits(path: Path, *patterns: str) -> bool:
    """Whether a file's name, in lower case and without .gz or .zst, fits one of the patterns."""
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return any(fnmatch.fnmatchcase(name, pattern.lower()) for pattern in patterns)


def files_in(path: Path, deepest: int = DEEPEST) -> list[Path]:
    """The file itself, or the files in a folder, by name, down to so many floors; images and hidden files left out.

    Raises FileError for what cannot be read.
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
            files += files_in(Path(entry.path), deepest - 1) if deepest > 1 else []
        elif Path(entry.name).suffix.lower() not in NOT_READ:
            files.append(Path(entry.path))
    return files


def head(path: Path, count: int = 1) -> list[str]:
    """The first lines of a text, unpacked, without their ends; none of what cannot be read."""
    try:
        with open_regular(path) as file:
            text = unpacked(file, path).read(HEAD_BYTES).decode("utf-8-sig", errors="replace")
    except (*DAMAGED, OSError, ValueError, TransrecError):
        return []
    return [line.rstrip("\r") for line in text.split("\n")[:count]]


def first_line(path: Path) -> str:
    """The first line of a text, as of `head`; "" of what cannot be read."""
    return "".join(head(path))


def _listed(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - SHOWN:,} more" if len(paths) > SHOWN else ""
    return ", ".join(map(str, paths[:SHOWN])) + more
