"""`table`: any file of rows, one interaction each, whose columns the user names."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from transrec.data.formats.base import Format, Rows, fits, register
from transrec.data.tables import Table, column, meant
from transrec.data.tsv import ITEM_NAME, USER_NAME, plain
from transrec.errors import TransrecError
from transrec.options import Options, flag
from transrec.paths import resolve

TIMES = ("timestamp", "time", "unixtime", "unixreviewtime", "datetime", "date")
RATINGS = ("rating", "ratings", "overall", "stars", "score")
TEXTS = ("*.csv", "*.tsv", "*.tab", "*.json", "*.jsonl", "*.ndjson", "*.parquet", "*.pq")


@dataclass(frozen=True)
class TableOptions(Options):
    user: str = flag("", "Column of the user (default: the one whose name says so).")
    item: str = flag("", "Column of the item (default: the one whose name says so).")
    time: str = flag("", "Column of the time (default: the one whose name says so; 'none': the rows are in order).")
    rating: str = flag("", "Column of the rating (default: the one whose name says so; 'none': there is none).")
    time_unit: Literal["auto", "s", "ms", "us"] = flag("auto", "Unit of times that are numbers; auto: by their size.")
    time_format: str = flag("", "Format of times that are texts, as '%%d/%%m/%%Y' (default: ISO 8601).")
    header: list[str] = flag([], "Names of the columns of a file without a header, in order.")
    delimiter: str = flag("", "What stands between columns (default: by the file's name, a comma or a tab).")
    no_quotes: bool = flag(False, "Quotes in the file are signs like others.")
    items: str = flag("", "File of the items' titles and other columns.")
    items_id: str = flag("", "Column of the item's id in --items (default: as --item).")
    items_header: list[str] = flag([], "Names of the columns of an --items file without a header, in order.")
    items_delimiter: str = flag("", "What stands between columns of --items (default: by the file's name).")
    title: str = flag("", "Column of the item's title (default: title or name).")
    item_columns: list[str] = flag([], "Further columns of items to keep, in items.tsv.")
    image: str = flag("", "Column of the address of an item's image, kept in images.tsv.")


@register("table")
class AnyTable(Format):
    """Rows of user, item, and if they are there time and rating; titles in the same file, or one of their own."""

    Options = TableOptions
    reads = "CSV, TSV, JSON lines or Parquet, plain, .gz or .zst, whose columns you name"
    is_general = True

    def __init__(self, paths: Sequence[Path], **flags: Any):
        super().__init__(paths)
        self.flags = TableOptions(**flags)

    @classmethod
    def recognise(cls, files: Sequence[Path]) -> str:
        if len(files) != 1 or not fits(files[0], *TEXTS):
            return ""
        try:
            names = Table(files[0]).columns()
        except TransrecError:
            return ""
        user, item = _named(names, USER_NAME), _named(names, ITEM_NAME, besides=_named(names, USER_NAME))
        return f"the columns {user} and {item} of {files[0].name}" if user and item else ""

    @cached_property
    def _tables(self) -> list[Table]:
        flags = self.flags
        return [self._table(path, flags.header, flags.delimiter) for path in self.files]

    def _table(self, path: str | Path, names: list[str], delimiter: str) -> Table:
        quote = "" if self.flags.no_quotes else '"'
        return Table(resolve(path), names=tuple(names), delimiter=_sign(delimiter), quote=quote)

    @cached_property
    def roles(self) -> dict[str, str]:
        """The column of each role that the interactions have."""
        if not self.files:
            raise TransrecError(f"{', '.join(map(str, self.paths))}: holds no files")
        names, flags = self._tables[0].columns(), self.flags
        roles = {"user": flags.user or _named(names, USER_NAME)}
        roles["item"] = flags.item or _named(names, ITEM_NAME, besides=roles["user"])
        for role in ("user", "item"):
            if not roles[role]:
                raise TransrecError(
                    f"{self.files[0]}: none of its columns is named as that of {role}s; name it with --{role}; "
                    f"{meant(role, names)}"
                )
        for role, usual in (("time", TIMES), ("rating", RATINGS)):
            given = getattr(flags, role)
            name = given or next((one for want in usual for one in names if plain(one) == want), "")
            if name and given != "none":
                roles[role] = name
        return roles

    def interactions(self) -> list[Rows]:
        columns = {role: column(name) for role, name in self.roles.items()}
        needs = tuple(dict.fromkeys(self.roles.values()))
        unit = "" if self.flags.time_unit == "auto" else self.flags.time_unit
        form = self.flags.time_format
        return [Rows(table, columns, needs, time_unit=unit, time_format=form) for table in self._tables]

    def items(self) -> list[Rows]:
        flags, tables = self.flags, self._tables
        if flags.items:
            tables = [self._table(flags.items, flags.items_header, flags.items_delimiter)]
        roles = self._item_roles(tables[0].columns())
        if len(roles) == 1 and not flags.items:
            return []
        columns = {role: column(name) for role, name in roles.items()}
        return [Rows(table, columns, tuple(dict.fromkeys(roles.values()))) for table in tables]

    def _item_roles(self, names: list[str]) -> dict[str, str]:
        """The column of each role that items have, of those of their file."""
        flags, free = self.flags, names
        item = flags.items_id or self.roles["item"]
        if not flags.items:
            free = [name for name in names if name not in self.roles.values()]
        elif not flags.items_id and item not in names:
            item = _named(names, ITEM_NAME) or item
        usual = next((one for want in ("title", "name") for one in free if plain(one) == want), "")
        roles = {"item": item, "title": flags.title or usual, "image": flags.image}
        roles |= {name.lower(): name for name in flags.item_columns}
        return {role: name for role, name in roles.items() if name}

    def notes(self) -> list[str]:
        return [f"columns: {', '.join(f'{name} is the {role}' for role, name in self.roles.items())}"]


def _named(names: Sequence[str], pattern: Any, besides: str = "") -> str:
    """The first column whose name fits, rather a longer name than `id` alone."""
    fitting = [name for name in names if name != besides and pattern.fullmatch(plain(name))]
    return next((name for name in fitting if plain(name) != "id"), fitting[0] if fitting else "")


def _sign(text: str) -> str:
    """A delimiter as it is written on a command line."""
    return {"\\t": "\t", "tab": "\t"}.get(text, text)
