"""Reads the rows of a source into the database, and reports the file, line and remedy if a row cannot be read."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transrec.data.formats import Rows, Table, column
from transrec.data.importing.database import Database
from transrec.data.tables import damage_error, ending
from transrec.errors import FileError, TransrecError, about_file
from transrec.paths import atomic_write
from transrec.untrusted import check_regular

UTF8 = ("utf-8", "utf8", "utf-8-sig")
GLOB = set("*?[")
CHUNK = 2**22
LONGEST_ROW = 2**26
ISO = "a date and time such as 2019-09-01 12:00:00"


@dataclass(frozen=True)
class Source:
    """Rows that DuckDB can read.

    Attributes:
        rows: the rows as the format describes them.
        table: the file that DuckDB reads, which may be a copy in UTF-8 or JSON.
        sql: SQL for the table, with columns of text.
    """

    rows: Rows
    table: Table
    sql: str

    @property
    def path(self) -> Path:
        """The user's file, of which `table` may be a copy."""
        return self.rows.table.path

    @property
    def query(self) -> str:
        """SQL for the relation over which the expressions of the columns are evaluated."""
        return self.rows.query.replace("{table}", self.sql)


def open_source(rows: Rows, folder: Path, database: Database) -> Source:
    """Check a file and the columns that its rows need, and convert the file to a copy if DuckDB cannot read it.

    Args:
        folder: where to write the copy.

    Raises TransrecError if the file is missing, empty, not of the expected kind, or lacks a column.
    """
    table = rows.table
    if GLOB & set(str(table.path)):
        raise TransrecError(f"{table.path}: the signs * ? [ in a path would be taken for patterns; rename it")
    with about_file(table.path, what="cannot be read"):
        check_regular(table.path)
    table.check(rows.needs)
    if table.path.suffix.lower() == ".zst":
        check_whole(table)
    readable = table
    if table.reader == "literal":
        readable = _as_json(table, folder)
    elif table.encoding.lower() not in UTF8:
        readable = _as_utf8(table, folder)
    return Source(rows, readable, _sql(readable, (*rows.needs, *rows.optional)))


def check_whole(table: Table) -> None:
    """Raise TransrecError if a file's compressed data is truncated, which DuckDB may not notice."""
    with table.open() as text:
        while text.read(CHUNK):
            pass


def _sql(table: Table, needs: tuple[str, ...]) -> str:
    path = _quoted(str(table.path))
    if table.reader == "parquet":
        texts = ", ".join(f"{column(name)}::VARCHAR AS {column(name)}" for name in needs)
        return f"(SELECT {texts} FROM read_parquet({path}, binary_as_string=true))"
    if table.reader == "json":
        columns = ", ".join(f"{_quoted(name)}: 'VARCHAR'" for name in needs)
        return (
            f"read_json({path}, format='newline_delimited', columns={{{columns}}}, maximum_object_size={LONGEST_ROW})"
        )
    # DuckDB treats names that differ only in case as equal.
    names: dict[str, str] = {}
    for place, given in enumerate(table.columns()):
        name = given if given and given.lower() not in names else f"{given} {place}"
        names[name.lower()] = name
    columns = ", ".join(f"{_quoted(name)}: 'VARCHAR'" for name in names.values())
    quote = _quoted(table.quote)
    return (
        f"read_csv({path}, auto_detect=false, header={str(not table.names).lower()}, delim={_quoted(table.separator)}, "
        f"quote={quote}, escape={quote}, columns={{{columns}}}, max_line_size={LONGEST_ROW})"
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _as_utf8(table: Table, folder: Path) -> Table:
    """Return a copy of a file, converted to UTF-8."""
    copy = folder / f"{table.path.name}{ending(table.path)}"
    with (
        atomic_write(copy) as temporary,
        table.open() as text,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        while piece := text.read(CHUNK):
            file.write(piece)
    return replace(table, path=copy, kind=table.reader, delimiter=table.separator, encoding="utf-8")


def _as_json(table: Table, folder: Path) -> Table:
    """Return a copy of a file of Python dicts, converted to JSON lines."""
    copy = folder / f"{table.path.name}.json"
    with table.open() as text, atomic_write(copy) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row, _ in table.records(text):
            file.write(json.dumps(row, default=str) + "\n")
    return replace(table, path=copy, kind="json", encoding="utf-8")


def insert(database: Database, target: str, source: Source, columns: dict[str, str], label: str) -> None:
    """Read a source into a table of the database.

    Args:
        columns: SQL expressions to read, by the column of `target` that each fills.

    Raises TransrecError, naming the file, the line or row, the column and the remedy, if a value cannot be read.
    """
    into = ", ".join(map(column, columns))
    select = f"SELECT {', '.join(columns.values())} FROM {source.query}"
    try:
        database.run(f"INSERT INTO {target} ({into}) {select}", label=label)
    except database.Error as error:
        if isinstance(error, database.SqlError):
            raise
        raise reading_error(error, source, database) from error


def checked_expression(what: str, source: Source, database: Database) -> str:
    """Return SQL for the "time" (in the source's unit) or "rating" of rows: DOUBLE. Malformed values raise an error."""
    expression = source.rows.columns[what]
    return _expression_or_error(what, expression, _parse_expression(what, expression, source, database)[0])


def _parse_expression(what: str, text: str, source: Source, database: Database) -> tuple[str, str]:
    """Return SQL for the number in the text of a time or rating, null if malformed; and what the text should be."""
    form = source.rows.time_format if what == "time" else ""
    if form:
        return f"epoch(try_strptime({text}, {_quoted(form)}))", f"a time like {form}"
    if what == "rating":
        return f"try_cast({text} AS FLOAT)", "a number"
    if has_numbers(source, database):
        return f"try_cast({text} AS DOUBLE)", "a number"
    # Times without an offset are UTC.
    return f"epoch(try_cast({text} AS TIMESTAMPTZ))", ISO


def has_numbers(source: Source, database: Database) -> bool:
    """Return whether the times of a source are numbers, judging by the first non-empty one."""
    return not source.rows.time_format and _is_number(source, source.rows.columns["time"], database)


def _is_number(source: Source, expression: str, database: Database) -> bool:
    try:
        result = database.rows_outside_transaction(
            f"SELECT try_cast({expression} AS DOUBLE) IS NOT NULL FROM {source.sql} "
            f"WHERE trim({expression}) <> '' LIMIT 1"
        )
    except database.Error as error:
        if isinstance(error, database.SqlError):
            raise
        raise reading_error(error, source, database) from error
    return not result or result[0][0]


def _expression_or_error(what: str, expression: str, parsed: str) -> str:
    empty = f"coalesce(trim({expression}), '') = ''"
    fails = f"error('transrec {what}:' || {expression})"
    return f"CASE WHEN isfinite({parsed}) THEN {parsed} WHEN {empty} THEN NULL ELSE {fails} END"


def _malformed_condition(expression: str, parsed: str) -> str:
    return f"trim({expression}) <> '' AND ({parsed} IS NULL OR NOT isfinite({parsed}))"


def reading_error(error: Exception, source: Source, database: Database) -> TransrecError:
    """Return the TransrecError that reports a DuckDB error while reading a source."""
    text, path, table = str(error), source.path, source.table
    if found := re.search(r"transrec (time|rating):", text):
        return _malformed_value_error(found[1], source, database)
    if "GZIP" in text:
        return damage_error(path, OSError("its packed data ends too early" if "Unexpected end" in text else text))
    if table.reader == "json":
        return _json_error(source) or TransrecError(f"{path}: is not a JSON lines file ({_first_line(text)})")
    line = re.search(r"CSV Error on Line: (\d+)", text)
    place = f"{path}, line {line[1]}" if line else str(path)
    if "utf-8" in text or "unicode" in text:
        return TransrecError(f"{place}: is not UTF-8; name the file's encoding, such as --encoding latin-1")
    if found := re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", text):
        return TransrecError(
            f"{place}: has {found[2]} columns where there should be {found[1]}; mend the line, or fetch the file again "
            f"if it is the last"
        )
    if "unterminated quote" in text:
        return TransrecError(f"{place}: opens a quote {table.quote} that nothing closes; mend the line")
    if "invalid state" in text and (found := _line_with_other_end(table)):
        return TransrecError(f"{path}, line {found}: does not end like line 1; convert it, for example with dos2unix")
    return TransrecError(f"{place}: cannot be read ({_first_line(text)}); mend it, or fetch it again")


def _first_line(text: str) -> str:
    return next(line for line in text.splitlines() if line.strip())[:160]


def _malformed_value_error(what: str, source: Source, database: Database) -> TransrecError:
    """Return the TransrecError that locates the first malformed time or rating."""
    expression = source.rows.columns[what]
    parsed, expected = _parse_expression(what, "value", source, database)
    ((number, value),) = database.rows_outside_transaction(
        f"SELECT number, value FROM (SELECT row_number() OVER () AS number, {expression} AS value FROM {source.sql}) "
        f"WHERE {_malformed_condition('value', parsed)} ORDER BY number LIMIT 1"
    )
    place = place_of(source, number)
    return TransrecError(f"{place}, {what}: {value!r} is not {expected}; mend it, or name another column")


def place_of(source: Source, number: int) -> str:
    """Return the file and line of a source's row with this number (from 1), or the row if the file has no lines."""
    table = source.rows.table
    if table.reader == "parquet":
        return f"{source.path}, row {number}"
    skipped = int(table.reader == "csv" and not table.names)
    try:
        with table.open() as text:
            for place, (_, line) in enumerate(table.records(text), start=1 - skipped):
                if place == number:
                    return f"{source.path}, line {line}"
    except FileError:
        pass
    return f"{source.path}, row {number}"


def _json_error(source: Source) -> TransrecError | None:
    """Return the error for the first line of a JSON file that is not an object; None if all are."""
    table = source.rows.table
    try:
        with table.open() as text:
            for _ in table.records(text):
                pass
    except TransrecError as error:
        return error
    return None


def _line_with_other_end(table: Table) -> int | None:
    """Return the number of the first line whose line end differs from that of line 1."""
    with table.open() as text:
        return next(_lines_with_other_end(text), None)


def _lines_with_other_end(text: Any) -> Iterator[int]:
    first = None
    for number, line in enumerate(text, start=1):
        end = line[len(line.rstrip("\r\n")) :]
        first = first or end
        if end and end != first:
            yield number
