"""Reads tables in common file formats: delimited columns, JSON lines or Parquet, compressed or not."""

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
TO_UNPACK = (".zip", ".bz2", ".xz", ".7z", ".rar", ".tar", ".tgz")
# Errors that decompression raises in addition to OSError.
DECOMPRESSION_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)
# The reader of a file and the delimiter of its columns, by the file's ending; the default is a csv with commas.
READERS = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
}
DELIMITERS = {**dict.fromkeys((".tsv", ".tab", ".inter", ".item", ".user"), "\t"), ".dat": "::"}
# How many JSON rows are searched for the names of columns.
HEAD_LINES = 1000
LONGEST_LINE = 2**24
COLUMNS_SHOWN = 30


def column(name: str) -> str:
    """Return the name of a column, quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def joined(name: str, by: str = " ", path: str = "$[*]") -> str:
    """Return SQL that joins the texts of a column's JSON lists into one; values that are not lists stay as they are."""
    place = column(name)
    texts = f"array_to_string(TRY_CAST({place} AS JSON)->>'{path}', '{by}')"
    return f"CASE WHEN starts_with({place}, '[') THEN {texts} ELSE {place} END"


@dataclass(frozen=True)
class Table:
    """A table in a file on disk; its columns are read as text.

    Attributes:
        kind: "csv" for lines of delimited columns, "json" for one JSON object per line, "literal" for one Python dict
            per line, or "parquet"; by default chosen by the file's ending.
        names: the column names of a csv without a header.
        delimiter: the separator between the columns of a csv; by default chosen by the file's ending.
        quote: the quote character around csv columns that contain delimiters; "" to treat quotes as ordinary text.
        encoding: any encoding that Python knows.
    """

    path: Path
    kind: str = ""
    names: tuple[str, ...] = ()
    delimiter: str = ""
    quote: str = '"'
    encoding: str = "utf-8"

    @property
    def reader(self) -> str:
        """`kind`, or by default the kind that belongs to the file's ending."""
        return self.kind or READERS.get(ending(self.path), "csv")

    @property
    def separator(self) -> str:
        """`delimiter`, or by default the one that belongs to the file's ending."""
        return self.delimiter or DELIMITERS.get(ending(self.path), ",")

    def columns(self) -> list[str]:
        """Return the column names in order: a csv's first line, or the keys in the first thousand rows of JSON.

        Raises TransrecError if the file is empty or cannot be read.
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
        """Raise TransrecError, suggesting similar names, if the file is empty or lacks one of the columns.

        So does a column whose name differs from another only in case, which DuckDB ignores except in JSON.
        """
        if not self.path.stat().st_size:
            self._no_rows()
        columns = self.columns()
        for name in needed:
            if name not in columns:
                raise TransrecError(f"{self.path}: has no column {name!r}; {missing_column_hint(name, columns)}")
            twins = [other for other in columns if other != name and other.lower() == name.lower()]
            if twins and self.reader in ("csv", "parquet"):
                raise TransrecError(f"{self.path}: has the columns {name!r} and {twins[0]!r}; rename one of them")

    @contextmanager
    def open(self) -> Iterator[IO[str]]:
        """Open the decompressed text. Raises TransrecError if it is unreadable, cut short, or in another encoding."""
        encoding = "utf-8-sig" if self.encoding.lower() in ("utf-8", "utf8") else self.encoding
        with about_file(self.path, what="cannot be read"):
            check_regular(self.path)
            try:
                with open(self.path, "rb") as packed, unpacked(packed, self.path) as file:
                    yield io.TextIOWrapper(file, encoding=encoding, newline="")
            except (*DECOMPRESSION_ERRORS, UnicodeDecodeError) as error:
                raise damage_error(self.path, error) from error
            except OSError as error:
                if error.errno is None:
                    raise damage_error(self.path, error) from error
                raise

    def records(self, lines: IO[str]) -> Iterator[tuple[Any, int]]:
        """Yield each row, a header included, and the number (from 1) of the line on which the row ends.

        Raises TransrecError for a malformed csv line, and for a line that is not a JSON object or Python dict if `kind`
        asks for one.
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
            if isinstance(row := parse_json(line) if self.reader == "json" else ast.literal_eval(line.strip()), dict):
                return row
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
    """Return the ending of a file's name in lower case, ignoring a compression ending such as .gz."""
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSED else path).suffix.lower()


def missing_column_hint(name: str, columns: Sequence[str]) -> str:
    """Return a hint for a message about a missing column: the most similar name, and the names of all columns."""
    by_plain = {known.lower().replace("_", ""): known for known in columns}
    near = [by_plain[match] for match in difflib.get_close_matches(name.lower().replace("_", ""), by_plain, n=3)]
    shown = f"{', '.join(columns[:COLUMNS_SHOWN])}{' ...' if len(columns) > COLUMNS_SHOWN else ''}"
    return f"{f'did you mean {chr(32).join(near[:1])}? ' if near else ''}its columns are {shown}"


def damage_error(path: Path, error: Exception) -> TransrecError:
    """Return the error to raise for a file whose compressed data or encoding is broken."""
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
    """Return the number of the first line that is not valid in an encoding."""
    with open(path, "rb") as packed, unpacked(packed, path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError:
                return number
    return 1


def unpacked(file: IO[bytes], path: Path) -> Any:
    """Return a reader of an open file's content, decompressed according to the ending of its path.

    Raises TransrecError for endings of archives, and of compressions that are not read.
    """
    if path.name.lower().endswith(TO_UNPACK):
        raise TransrecError(f"{path}: is packed; unpack it first (of packed files, only .gz and .zst are read)")
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
            raise TransrecError(f"{path}: is not a Parquet file, or is cut short; fetch it again") from error


def import_extra(name: str) -> Any:
    """Import a module that dataset import needs. Raises TransrecError if it is not installed."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TransrecError(
            f"importing needs {name.partition('.')[0]}; install it with: pip install 'transrec[import]'"
        ) from error
