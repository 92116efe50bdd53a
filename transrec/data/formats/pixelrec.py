"""`pixelrec`: Pixel200K, Pixel1M, Pixel8M and PixelRec (https://github.com/westlake-repl/PixelRec)."""

from collections.abc import Sequence
from pathlib import Path

from transrec.data.formats.base import Format, Rows, first_line, fits, register
from transrec.data.tables import column

PAIRS = ("item_id", "user_id", "timestamp")
TEXTS = ("title", "title_en", "tag", "description")


@register("pixelrec")
class PixelRec(Format):
    """Pixel200K.csv or the like with interactions, whose first column is the item, and item_info.csv."""

    reads = "Pixel*.csv, and item_info.csv of PixelRec"

    @classmethod
    def recognise(cls, files: Sequence[Path]) -> str:
        for path in files:
            if fits(path, "pixel*.csv") and _is_header(first_line(path)):
                return f"the header {','.join(PAIRS)} of {path.name}"
        return ""

    def interactions(self) -> list[Rows]:
        pairs = [path for path in self.all_of("*.csv") if _is_header(first_line(path))]
        path = pairs[0] if len(pairs) == 1 else self.one_of("pixel*.csv")
        return [Rows(self.table(path), {"user": "user_id", "item": "item_id", "time": "timestamp"}, PAIRS)]

    def items(self) -> list[Rows]:
        return [self._items(path) for path in self.all_of("*info*.csv", "*item*.csv")]

    def _items(self, path: Path) -> Rows:
        table = self.table(path)
        names = ["item_id", *(name for name in table.columns() if name in TEXTS)]
        columns = {name: column(name) for name in names[1:]} | {"item": "item_id"}
        return Rows(table, columns, tuple(names))


def _is_header(line: str) -> bool:
    return sorted(line.replace('"', "").split(",")) == sorted(PAIRS)
