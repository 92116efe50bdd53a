"""`amazon2018`: Amazon Review Data of 2018 (https://nijianmo.github.io/amazon), reviews, 5-core or ratings only."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from transrec.data.formats.base import Format, Rows, first_line, fits, head, register
from transrec.data.tables import joined

RATINGS = ("first", "second", "rating", "timestamp")
REVIEW = ("reviewerID", "asin", "overall", "unixReviewTime")
# Item ids have exactly ten characters; reviewer ids have more.
ASIN = re.compile(r"[A-Z0-9]{10}")
LINES_LOOKED_AT = 100


class AmazonReviews(Format):
    """Reviews (JSON lines) or ratings (four columns without a header), and metadata.

    The order of the item and user columns in ratings differs between years, so it is inferred from the ids.
    """

    metadata: ClassVar[str] = "meta_*.json"
    reviews: ClassVar[tuple[str, ...]] = ("*.json",)

    def interactions(self) -> list[Rows]:
        path = self.one_of(*self.reviews, "*.csv", excluding=(self.metadata,))
        if fits(path, "*.csv"):
            item, user = RATINGS[:2] if is_item_first(path) else RATINGS[1::-1]
            columns = {"user": user, "item": item, "time": "timestamp", "rating": "rating"}
            return [Rows(self.table(path, names=RATINGS), columns, RATINGS, time_unit="s")]
        columns = {"user": '"reviewerID"', "item": "asin", "time": '"unixReviewTime"', "rating": "overall"}
        return [Rows(self.table(path), columns, REVIEW, time_unit="s")]


def is_item_first(path: Path) -> bool:
    """Return whether the first of four columns is the item, that is, whether its first values are all ASINs."""
    values = [line.split(",")[0] for line in head(path, LINES_LOOKED_AT) if line.count(",") == 3]
    return all(map(ASIN.fullmatch, values))


@register("amazon2018")
class Amazon2018(AmazonReviews):
    """CAT.json (all reviews), CAT_5.json (the 5-core) or CAT.csv (ratings), and meta_CAT.json."""

    reads = "CAT.json(.gz), CAT_5.json(.gz) or CAT.csv, and meta_CAT.json(.gz)"

    @classmethod
    def recognise(cls, files: Sequence[Path]) -> str:
        for path in files:
            first = first_line(path) if fits(path, "*.json") and not fits(path, "reviews_*", "meta_*") else ""
            if '"reviewerID"' in first and '"asin"' in first:
                return f"{path.name} has reviewerID and asin in its first line"
            if fits(path, "*.csv") and re.match(r"[A-Z0-9]{10},A[A-Z0-9]{10,},\d\.\d,\d{9,10}$", first_line(path)):
                return f"{path.name} has columns of item, user, rating and time"
        return ""

    def items(self) -> list[Rows]:
        columns = {
            "item": "asin",
            # The title of some products is JavaScript scraped from their page.
            "title": "CASE WHEN contains(title, 'getTime') THEN NULL ELSE title END",
            "brand": "brand",
            "categories": f"coalesce({joined('category', ', ')}, {joined('categories', ', ')})",
            "features": joined("feature"),
            "description": joined("description"),
            "image": f"coalesce({first_of('imageURLHighRes')}, {first_of('imageURL')})",
        }
        lists = ("category", "categories", "feature", "description", "imageURLHighRes", "imageURL")
        paths = self.all_of(self.metadata)
        return [Rows(self.table(path), columns, ("asin", "title"), optional=("brand", *lists)) for path in paths]


def first_of(name: str) -> str:
    """Return SQL for the first text of a JSON list, or for the column's value if it is not a list."""
    return f'CASE WHEN starts_with("{name}", \'[\') THEN TRY_CAST("{name}" AS JSON)->>0 ELSE "{name}" END'
