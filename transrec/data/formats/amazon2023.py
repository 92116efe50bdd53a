"""`amazon2023`: Amazon Reviews 2023 (https://amazon-reviews-2023.github.io), raw, 0-core or 5-core."""

from collections.abc import Sequence
from pathlib import Path

from transrec.data.formats.base import PARTS, Format, Rows, first_line, fits, register
from transrec.data.tables import joined
from transrec.errors import TransrecError

CSV = ("user_id", "parent_asin", "rating", "timestamp")
META = ("store", "main_category", "features", "description", "categories", "images")


@register("amazon2023")
class Amazon2023(Format):
    """CAT.jsonl (reviews) or CAT.csv (ratings), and meta_CAT.jsonl. Items are identified by their parent_asin."""

    reads = "CAT.jsonl(.gz) or CAT.csv (also .train, .valid, .test), and meta_CAT.jsonl(.gz)"

    @classmethod
    def recognise(cls, files: Sequence[Path]) -> str:
        for path in files:
            first = first_line(path) if fits(path, "*.csv", "*.jsonl") else ""
            if first.startswith(",".join(CSV)):
                return f"the header {','.join(CSV)} of {path.name}"
            if '"parent_asin"' in first and '"user_id"' in first:
                return f"{path.name} has parent_asin and user_id in its first line"
        return ""

    def interactions(self) -> list[Rows]:
        patterns = "*.jsonl", "*.csv"
        reviews = self.all_of(*patterns, excluding=("meta_*",)) or [self.one_of(*patterns, excluding=("meta_*",))]
        kinds = {path.name.lower().removesuffix(".gz").rpartition(".")[2] for path in reviews}
        if len(kinds) > 1:
            raise TransrecError(
                f"{reviews[0].parent}: holds reviews (.jsonl) and ratings (.csv) of the same interactions; give the "
                f"paths of those to import, and of the meta_ file"
            )
        of_category: dict[str, Path] = {}
        for path in reviews:
            first = of_category.setdefault(path.name.split(".")[0], path)
            if first.parent != path.parent or bool(_part(first)) != bool(_part(path)):
                raise TransrecError(
                    f"{first} and {path}: hold the same interactions; give the paths of those to import, and of the "
                    f"meta_ file"
                )
        return [self._rows(path) for path in reviews]

    def _rows(self, path: Path) -> Rows:
        columns = {"user": "user_id", "item": "parent_asin", "time": "timestamp", "rating": "rating"}
        part = _part(path)
        return Rows(self.table(path), columns | ({"part": f"'{part}'"} if part else {}), CSV, time_unit="ms")

    def items(self) -> list[Rows]:
        columns = {
            "item": "parent_asin",
            "title": "title",
            "brand": "store",
            "category": "main_category",
            "categories": joined("categories", ", "),
            "features": joined("features"),
            "description": joined("description"),
            "image": "coalesce(json(images)->0->>'hi_res', json(images)->0->>'large')",
        }
        return [
            Rows(self.table(path), columns, ("parent_asin", "title"), optional=META)
            for path in self.all_of("meta_*.jsonl")
        ]

    def notes(self) -> list[str]:
        return ["an item is a parent_asin, which stands for all variants of a product"]


def _part(path: Path) -> str:
    """Return the part of the publisher's own split that a file holds; "" if it holds all interactions."""
    return PARTS.get(path.name.lower().split(".")[1], "")
