"""`ninerec`: the datasets of NineRec, from Bili_500K to DY (https://github.com/westlake-repl/NineRec)."""

import csv
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from transrec.data.formats.base import Format, Rows, first_line, fits, head, register
from transrec.errors import TransrecError

# The first letter of an id tells users from items.
ID_PATTERNS = {"user": re.compile(r"u\d+"), "item": re.compile(r"v\d+")}
ITEM_COLUMNS = ("item", "title_zh", "title")


@register("ninerec")
class NineRec(Format):
    """NAME_pair.csv or NAME_behaviour.tsv, NAME_item.csv with Chinese and English titles, and NAME_url.csv."""

    reads = "NAME_pair.csv (or NAME_behaviour.tsv), NAME_item.csv and NAME_url.csv of NineRec"

    @classmethod
    def recognise(cls, files: Sequence[Path]) -> str:
        pairs = [path for path in files if fits(path, "*_pair.csv", "*_behaviour.tsv")]
        for path in pairs:
            first = re.split(r"[,\t ]", first_line(path).replace('"', ""))
            if all(any(form.fullmatch(field) for field in first) for form in ID_PATTERNS.values()):
                return f"{path.name} names users u... and items v..."
        return ""

    @cached_property
    def _has_times(self) -> bool:
        """Return whether there is a file of pairs that has a third column, the time."""
        return bool(self.all_of("*_pair.csv")) and len(_fields(self.one_of("*_pair.csv"))) > len(ID_PATTERNS)

    def interactions(self) -> list[Rows]:
        # Pairs without times have no known order, while behaviours are in order.
        if not self._has_times and self.all_of("*_behaviour.tsv"):
            return [self.sequences(self.one_of("*_behaviour.tsv"))]
        path = self.one_of("*_pair.csv")
        if not (fields := _fields(path)):
            raise TransrecError(f"{path}: is empty; fetch it again")
        names = tuple(f"column{place}" for place in range(len(fields)))
        columns = {
            role: name
            for role, form in ID_PATTERNS.items()
            for name, field in zip(names, fields, strict=True)
            if form.fullmatch(field)
        }
        rest = [name for name in names if name not in columns.values()]
        if len(columns) != len(ID_PATTERNS) or len(rest) > 1:
            raise TransrecError(
                f"{path}, line 1: {', '.join(fields)[:80]!r} are not an id of a user (u1), one of an item (v1) and "
                f"perhaps a time; import it as a table, with --header naming the columns"
            )
        columns |= dict(zip(["time"], rest, strict=False))
        return [Rows(self.table(path, names=names), columns, names)]

    def items(self) -> list[Rows]:
        titles = [
            Rows(self.table(path, names=ITEM_COLUMNS), {name: name for name in ITEM_COLUMNS}, ITEM_COLUMNS)
            for path in self.all_of("*_item.csv")
        ]
        names = ("item", "image")
        links = [
            Rows(self.table(path, names=names), {name: name for name in names}, names)
            for path in self.all_of("*_url.csv")
        ]
        return titles + links

    def notes(self) -> list[str]:
        return [] if self._has_times else ["the interactions have no times; their order is that of the file"]


def _fields(path: Path) -> list[str]:
    try:
        return next(csv.reader(head(path)), [])
    except csv.Error as error:
        raise TransrecError(f"{path}, line 1: {error}; mend it, or fetch the file again") from error
