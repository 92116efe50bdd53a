"""`table`: any file with one interaction per row, whose columns the user names."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from transrec.data.formats.base import Format, Rows, fits, register
from transrec.data.tables import Table, column, missing_column_hint
from transrec.data.tsv import ITEM_NAME, USER_NAME, plain
from transrec.errors import TransrecError
from transrec.options import Options, flag
from transrec.paths import resolve

TIMES = ("timestamp", "time", "unixtime", "unixreviewtime", "datetime", "date")
RATINGS = ("rating", "ratings", "overall", "stars", "score")
# For files whose lines are read into a single column: the names of that column and of the items in heads, and a
# delimiter that no line contains.
LINE, HEAD, NO_DELIMITER = "line", "item", "\x01"
NUMBERED = f"(SELECT {LINE}, row_number() OVER () AS number FROM {{table}})"
BENEATH_HEADS = (
    f"(SELECT rows.{LINE}, heads.{HEAD} FROM {NUMBERED} rows ASOF JOIN (SELECT rtrim({LINE}, ':') AS {HEAD}, number "
    f"FROM {NUMBERED} WHERE {LINE} LIKE '%:') heads ON rows.number >= heads.number WHERE rows.{LINE} NOT LIKE '%:')"
)
FILE_PATTERNS = ("*.csv", "*.tsv", "*.tab", "*.json", "*.jsonl", "*.ndjson", "*.parquet", "*.pq")


@dataclass(frozen=True)
class TableOptions(Options):
    user: str = flag("", "Column of the user (default: recognised by its name).")
    item: str = flag("", "Column of the item (default: recognised by its name).")
    time: str = flag(
        "", "Column of the time (default: recognised by its name; 'none': no times, the rows are in order)."
    )
    rating: str = flag("", "Column of the rating (default: recognised by its name; 'none': no ratings).")
    time_unit: Literal["auto", "s", "ms", "us"] = flag("auto", "Unit of numeric times; auto: inferred from their size.")
    time_format: str = flag("", "Format of times that are text, such as '%%d/%%m/%%Y' (default: ISO 8601).")
    header: list[str] = flag([], "Column names of a file without a header, in order.")
    delimiter: str = flag("", "Delimiter between columns (default: a comma, a tab or ::, by the file's name).")
    no_quotes: bool = flag(False, "Treat quotes in the file as ordinary characters.")
    item_heads: bool = flag(False, "Lines such as '123:' name the item of the lines that follow; needs --header.")
    items: str = flag("", "File with the items' titles and other columns.")
    items_id: str = flag("", "Column of the item's id in --items (default: same as --item).")
    items_header: list[str] = flag([], "Column names of an --items file without a header, in order.")
    items_delimiter: str = flag("", "Delimiter between columns of --items (default: by the file's name).")
    items_rest: bool = flag(
        False, "The last column of --items_header takes the rest of the line, including delimiters."
    )
    title: str = flag("", "Column of the item's title (default: title or name).")
    item_columns: list[str] = flag([], "Further item columns to keep in items.tsv.")
    image: str = flag("", "Column with the address of the item's image, kept in images.tsv.")


@register("table")
class AnyTable(Format):
    """Rows of user, item and, if present, time and rating. Titles are in the same file or in a separate one."""

    Options = TableOptions
    reads = "CSV, TSV, JSON lines or Parquet, plain, .gz or .zst, whose columns you name"
    is_general = True

    def __init__(self, paths: Sequence[Path], **flags: Any):
        super().__init__(paths)
        self.flags = TableOptions(**flags)
        if self.flags.item_heads and not self.flags.header:
            raise TransrecError("--item_heads: needs --header, the names of the columns of the lines beneath a head")
        if self.flags.items_rest and not (self.flags.items and self.flags.items_header):
            raise TransrecError("--items_rest: needs --items and --items_header, whose last column it is about")

    @classmethod
    def recognise(cls, files: Sequence[Path]) -> str:
        if len(files) != 1 or not fits(files[0], *FILE_PATTERNS):
            return ""
        try:
            names = Table(files[0]).columns()
        except TransrecError:
            return ""
        user = _matching_column(names, "user")
        item = _matching_column(names, "item", excluding=user)
        return f"the columns {user} and {item} of {files[0].name}" if user and item else ""

    @cached_property
    def _tables(self) -> list[Table]:
        flags = self.flags
        if flags.item_heads:
            return [self._lines(path) for path in self.files]
        return [self._table(path, flags.header, flags.delimiter) for path in self.files]

    def _table(self, path: str | Path, names: list[str], delimiter: str) -> Table:
        quote = "" if self.flags.no_quotes else '"'
        return self.table(resolve(path), names=tuple(names), delimiter=_delimiter(delimiter), quote=quote)

    def _lines(self, path: Path) -> Table:
        """Return a table that reads each line of a file as one column."""
        return self.table(path, names=(LINE,), delimiter=NO_DELIMITER, quote="")

    @cached_property
    def roles(self) -> dict[str, str]:
        """The column of each role (user, item, time, rating) that the interactions have."""
        if not self.files:
            raise TransrecError(f"{', '.join(map(str, self.paths))}: holds no files")
        flags = self.flags
        names = [*flags.header, HEAD] if flags.item_heads else self._tables[0].columns()
        roles = {"user": flags.user or _matching_column(names, "user")}
        roles["item"] = flags.item or _matching_column(names, "item", excluding=roles["user"])
        for role in ("user", "item"):
            if not roles[role]:
                raise TransrecError(
                    f"{self.files[0]}: none of its columns is named as that of {role}s; name it with --{role}; "
                    f"{missing_column_hint(role, names)}"
                )
        for role, usual in (("time", TIMES), ("rating", RATINGS)):
            given = getattr(flags, role)
            name = given or next((known for want in usual for known in names if plain(known) == want), "")
            if name and given != "none":
                roles[role] = name
        return roles

    def interactions(self) -> list[Rows]:
        columns = {role: column(name) for role, name in self.roles.items()}
        needs = tuple(dict.fromkeys(self.roles.values()))
        unit = "" if self.flags.time_unit == "auto" else self.flags.time_unit
        form, query = self.flags.time_format, "{table}"
        if self.flags.item_heads:
            columns = {role: HEAD if name == HEAD else self._line_column(name) for role, name in self.roles.items()}
            needs, query = (LINE,), BENEATH_HEADS
        return [Rows(table, columns, needs, query, time_unit=unit, time_format=form) for table in self._tables]

    def _line_column(self, name: str) -> str:
        """Return SQL for a column of a line that is read into a single column."""
        if name not in self.flags.header:
            raise TransrecError(f"--header: does not name {name!r}; {missing_column_hint(name, self.flags.header)}")
        delimiter = _delimiter(self.flags.delimiter) or ","
        return f"split_part({LINE}, '{delimiter}', {1 + self.flags.header.index(name)})"

    def items(self) -> list[Rows]:
        flags, tables = self.flags, self._tables
        if flags.items:
            tables = [self._table(flags.items, flags.items_header, flags.items_delimiter)]
        roles = self._item_roles(tables[0].columns())
        if not flags.items and (len(roles) == 1 or flags.item_heads):
            return []
        if flags.items_rest:
            return [self._items_of_lines(roles)]
        columns = {role: column(name) for role, name in roles.items()}
        return [Rows(table, columns, tuple(dict.fromkeys(roles.values()))) for table in tables]

    def _items_of_lines(self, roles: dict[str, str]) -> Rows:
        """Return the rows of an items file whose last column may contain delimiters."""
        names, delimiter = self.flags.items_header, _delimiter(self.flags.items_delimiter) or ","
        parts = {name: f"split_part({LINE}, '{delimiter}', {place})" for place, name in enumerate(names, start=1)}
        parts[names[-1]] = f"array_to_string(string_split({LINE}, '{delimiter}')[{len(names)}:], '{delimiter}')"
        return Rows(
            self._lines(resolve(self.flags.items)), {role: parts[name] for role, name in roles.items()}, (LINE,)
        )

    def _item_roles(self, names: list[str]) -> dict[str, str]:
        """Return the column of each role that items have, given the columns of their file."""
        flags, free = self.flags, names
        item = flags.items_id or self.roles["item"]
        if not flags.items:
            free = [name for name in names if name not in self.roles.values()]
        elif not flags.items_id and item not in names:
            item = _matching_column(names, "item") or item
        usual = next((known for want in ("title", "name") for known in free if plain(known) == want), "")
        roles = {"item": item, "title": flags.title or usual, "image": flags.image}
        roles |= {name.lower(): name for name in flags.item_columns}
        return {role: name for role, name in roles.items() if name}

    def notes(self) -> list[str]:
        return [f"columns: {', '.join(f'{name} is the {role}' for role, name in self.roles.items())}"]


def _matching_column(names: Sequence[str], role: Literal["user", "item"], excluding: str = "") -> str:
    """Return the column with a common name of users or items; "" if there is none.

    Of several, the first that names the role itself, as `user_id` does, comes before other names, such as `session_id`,
    and these before a bare `id`.
    """
    pattern = {"user": USER_NAME, "item": ITEM_NAME}[role]
    fitting = [name for name in names if name != excluding and pattern.fullmatch(plain(name))]
    return min(fitting, key=lambda name: (plain(name) == "id", not plain(name).startswith(role)), default="")


def _delimiter(text: str) -> str:
    """Return the delimiter that a command-line text stands for, such as a tab for "tab"."""
    return {"\\t": "\t", "tab": "\t"}.get(text, text)
