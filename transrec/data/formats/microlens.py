"""`microlens`: MicroLens-50k, -100k and -1M (https://github.com/westlake-repl/MicroLens)."""

from collections.abc import Sequence
from pathlib import Path

from transrec.data.formats.base import Format, Rows, first_line, fits, register

PAIRS = ("user", "item", "timestamp")
TITLES = ("item", "title")
COUNTS = {"microlens-50k": {"users": 50_000, "items": 19_220, "interactions": 359_708}}


@register("microlens")
class MicroLens(Format):
    """NAME_pairs.csv or .tsv, NAME_titles.csv or NAME_title_en.csv, and NAME_likes_and_views.txt."""

    reads = "MicroLens-*_pairs.csv (or .tsv), MicroLens-*_titles.csv (or _title_en.csv), _likes_and_views.txt"

    @classmethod
    def recognise(cls, files: Sequence[Path]) -> str:
        pairs = next((path for path in files if fits(path, "microlens*_pairs.csv", "microlens*_pairs.tsv")), None)
        return f"a file is named {pairs.name}" if pairs else ""

    def interactions(self) -> list[Rows]:
        # Prefer the .csv: only it has timestamps.
        if not self.all_of("*_pairs.csv") and self.all_of("*_pairs.tsv"):
            return [self.sequences(self.one_of("*_pairs.tsv"))]
        columns = {"user": "user", "item": "item", "time": "timestamp"}
        return [Rows(self.table(self.one_of("*_pairs.csv")), columns, PAIRS, time_unit="ms")]

    def items(self) -> list[Rows]:
        titles = [self._titles(path) for path in self.all_of("*_titles.csv", "*_title_en.csv")]
        names = ("item", "likes", "views")
        likes = [
            Rows(
                self.table(path, kind="csv", names=names, delimiter="\t", quote=""),
                {name: name for name in names},
                names,
            )
            for path in self.all_of("*_likes_and_views.txt")
        ]
        return titles + likes

    def _titles(self, path: Path) -> Rows:
        """Return the rows of a titles file, which has a header in MicroLens-50k but none in -100k."""
        has_header = first_line(path).replace('"', "") == ",".join(TITLES)
        table = self.table(path, names=() if has_header else TITLES)
        return Rows(table, {name: name for name in TITLES}, TITLES)

    def published(self) -> dict[str, int]:
        name = self.interactions()[0].table.path.name.lower()
        return COUNTS.get(name.partition("_")[0], {})
