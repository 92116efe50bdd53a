"""`amazon2014`: Amazon product data of 2014 (https://jmcauley.ucsd.edu/data/amazon), reviews or ratings only."""

import re
from collections.abc import Sequence
from pathlib import Path

from transrec.data.formats.amazon2018 import AmazonReviews
from transrec.data.formats.base import Rows, first_line, fits, register
from transrec.data.tables import joined

OPTIONAL = ("brand", "categories", "description", "imUrl")


@register("amazon2014")
class Amazon2014(AmazonReviews):
    """reviews_CAT.json or ratings_CAT.csv, and meta_CAT.json, whose lines are Python dicts rather than JSON."""

    reads = "reviews_CAT.json(.gz) (or _5) or ratings_CAT.csv, and meta_CAT.json(.gz)"
    reviews = ("reviews_*.json",)

    @classmethod
    def recognise(cls, files: Sequence[Path]) -> str:
        for path in files:
            first = first_line(path)
            if fits(path, "reviews_*.json") and '"reviewerID"' in first:
                return f"{path.name} has reviewerID in its first line"
            if fits(path, "ratings_*.csv") and re.match(r"A[A-Z0-9]+,[A-Z0-9]{10},\d\.\d,\d{9,10}$", first):
                return f"{path.name} has columns of user, item, rating and time"
        return ""

    def items(self) -> list[Rows]:
        columns = {
            "item": "asin",
            "title": "title",
            "brand": "brand",
            # A list of paths in the category tree, each a list of categories.
            "categories": joined("categories", ", ", "$[*][*]"),
            "description": "description",
            "image": '"imUrl"',
        }
        tables = [self.table(path, kind="literal") for path in self.all_of(self.metadata)]
        return [Rows(table, columns, ("asin",), optional=("title", *OPTIONAL)) for table in tables]
