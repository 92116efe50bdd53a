"""Files of rows as others write them: delimited columns, JSON lines, Parquet, compressed or not."""

import ast
import csv
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from transrec.errors import TransrecError, about_file
from transrec.untrusted import check_regular, parse_json

COMPRESSED = (".gz", ".zst")
# What unpacking raises, besides OSError.
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)
# How a file is read, and what stands between columns, by how its name ends.
READERS = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
}
DELIMITERS = {**dict.fromkeys((".tsv", ".tab", ".inter", ".item", ".user"), "\t"), ".dat": "::"}
# Lines of JSON whose keys are looked at.
HEAD_LINES = 1000
LONGEST_LINE = 2**24
COLUMNS_SHOWN = 30


def column(name: str) -> str:
    """The SQL that means the column of that name."""
    return '"' + name.replace('"', '""') + '"'


def joined(name: str, by: str = " ", path: str = "$[*]") -> str:
    """SQL of the texts of a JSON list in one, or of the text that stands in place of a list."""
    place = column(name)
    texts = f"array_to_string(TRY_CAST({place} AS JSON)->>'{path}', '{by}')"
    return f"CASE WHEN starts_with({place}, '[') THEN {texts} ELSE {place} END"


@dataclass(frozen=True)
class Table:
    """A file of rows as it lies on disk; its columns are read as text.

    Attributes:
        kind: "csv" for lines of delimited columns, "json" for an object a line, "literal" for a Python dict a line,
            "parquet"; by default what the file's name says.
        names: of the columns of a csv without a header.
        delimiter: between the columns of a csv; by default what the file's name says.
        quote: what stands around columns of a csv that hold delimiters; "" where quotes are signs like others.
        encoding: any that Python knows.
    """

    path: Path
    kind: str = ""
    names: tuple[str, ...] = ()
    delimiter: str = ""
    quote: str = '"'
    encoding: str = "utf-8"

    @property
    def reader(self) -> str:
        """`kind`, or what the file's name says."""
        return self.kind or READERS.get(ending(self.path), "csv")

    @property
    def separator(self) -> str:
        """`delimiter`, or what the file's name says."""
        return self.delimiter or DELIMITERS.get(ending(self.path), ",")

    def columns(self) -> list[str]:
        """Names of its columns in order: of a csv from its first line, of JSON the keys of its first thousand lines.

        Raises TransrecError for a file that is empty or cannot be read.
        """
        if self.names:
            return list(self.names)
        if self.reader == "parquet":
            return _parquet_columns(self.path)
        with self.open() as lines:
            if self.reader == "csv":
                return [name.strip() for name in next(self.records(lines), ([], 0))[0]] or self._no_rows()
            keys: dict[str, None] = {}
            for row, _ in islice(self.records(lines), HEAD_LINES):
                keys |= dict.fromkeys(row)
        return list(keys) or self._no_rows()

    def check(self, needed: Sequence[str]) -> None:
        """Raise TransrecError where the file lacks one of the columns, with the nearest names that it has."""
        if not self.path.stat().st_size:
            self._no_rows()
        there = self.columns()
        for name in needed:
            if name not in there:
                raise TransrecError(f"{self.path}: has no column {name!r}; {meant(name, there)}")

    @contextmanager
    def open(self) -> Iterator[IO[str]]:
        """Its text, unpacked. Raises TransrecError for what cannot be read, is cut short, or is in another encoding."""
        encoding = "utf-8-sig" if self.encoding.lower() in ("utf-8", "utf8") else self.encoding
        with about_file(self.path, what="cannot be read"):
            check_regular(self.path)
            try:
                with open(self.path, "rb") as packed, unpacked(packed, self.path) as file:
                    yield io.TextIOWrapper(file, encoding=encoding, newline="")
            except (*DAMAGED, UnicodeDecodeError) as error:
                raise damaged(self.path, error) from error
            except OSError as error:
                if error.errno is None:
                    raise damaged(self.path, error) from error
                raise

    def records(self, lines: IO[str]) -> Iterator[tuple[Any, int]]:
        """Each row and the number, from 1, of the line on which it ends; the header is a row like others.

        Raises TransrecError for a line that is no JSON object, or no Python dict, as `kind` says.
        """
        if self.reader == "csv" and len(self.separator) == 1:
            csv.field_size_limit(LONGEST_LINE)
            quoting = csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE
            reader = csv.reader(lines, delimiter=self.separator, quotechar=self.quote or None, quoting=quoting)
            try:
                yield from ((row, reader.line_num) for row in reader if row)
            except csv.Error as error:
                raise TransrecError(f"{self.path}, line {reader.line_num}: {error}; mend the line") from error
            return
        for number, line in enumerate(iter(lambda: lines.readline(LONGEST_LINE), ""), start=1):
            if not line.strip():
                continue
            is_csv = self.reader == "csv"
            yield (line.rstrip("\r\n").split(self.separator) if is_csv else self._object(line, number)), number

    def _object(self, line: str, number: int) -> dict[str, Any]:
        problem = ""
        try:
            if isinstance(found := parse_json(line) if self.reader == "json" else ast.literal_eval(line.strip()), dict):
                return found
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            problem = f" ({error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__})"
        what = "JSON object" if self.reader == "json" else "Python dict"
        raise TransrecError(
            f"{self.path}, line {number}: {line[:60].strip()!r} is no {what}{problem}; every line must be one, so mend "
            f"the line, or fetch the file again if it is the last"
        )

    def _no_rows(self) -> Any:
        raise TransrecError(f"{self.path}: is empty; fetch it again")


def ending(path: Path) -> str:
    """How a file's name ends, in lower case, without what says that it is compressed."""
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSED else path).suffix.lower()


def meant(name: str, there: Sequence[str]) -> str:
    """For a message about a missing column: the names nearest to it, and those that there are."""
    plain = {one.lower().replace("_", ""): one for one in there}
    near = [plain[one] for one in difflib.get_close_matches(name.lower().replace("_", ""), plain, n=3)]
    shown = f"{', '.join(there[:COLUMNS_SHOWN])}{' ...' if len(there) > COLUMNS_SHOWN else ''}"
    return f"{f'did you mean {chr(32).join(near[:1])}? ' if near else ''}its columns are {shown}"


def damaged(path: Path, error: Exception) -> TransrecError:
    """What to raise for a file whose compression or encoding breaks."""
    if isinstance(error, UnicodeDecodeError):
        byte, encoding = error.object[error.start], error.encoding.upper().removesuffix("-SIG")
        return TransrecError(
            f"{path}, line {_line_of(path, error.encoding)}: byte {byte:#04x} is not {encoding}; name the file's "
            f"encoding, such as --encoding latin-1"
        )
    if isinstance(error, gzip.BadGzipFile) and "Not a gzipped" in str(error):
        return TransrecError(f"{path}: is not packed by gzip, as its name says; rename it, or fetch it again")
    return TransrecError(f"{path}: is cut short or damaged ({error}); fetch it again")


def _line_of(path: Path, encoding: str) -> int:
    """The number of the first line that is not in an encoding."""
    with open(path, "rb") as packed, unpacked(packed, path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError:
                return number
    return 1


def unpacked(file: IO[bytes], path: Path) -> Any:
    """What a file that is open holds, unpacked as its path's name says."""
    if path.suffix.lower() == ".zst":
        return io.BufferedReader(import_extra("pyarrow").input_stream(file, compression="zstd"))
    return gzip.GzipFile(fileobj=file) if path.suffix.lower() == ".gz" else file


def _parquet_columns(path: Path) -> list[str]:
    parquet = import_extra("pyarrow.parquet")
    with about_file(path, what="cannot be read"):
        check_regular(path)
        try:
            return list(parquet.read_schema(path).names)
        except ValueError as error:
            raise TransrecError(f"{path}: is no Parquet file, or is cut short; fetch it again") from error


def import_extra(name: str) -> Any:
    """The module, of which importing has need. Raises TransrecError where it is not installed."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TransrecError(
            f"importing needs {name.partition('.')[0]}; install it with: pip install 'transrec[import]'"
        ) from error
