"""`hm`: purchases of clothes, from H&M's competition on Kaggle (h-and-m-personalized-fashion-recommendations)."""

from collections.abc import Sequence
from pathlib import Path

from transrec.data.formats.base import Format, Rows, first_line, fits, register
from transrec.data.tables import Table, column

TRANSACTIONS, ARTICLES = "transactions_train.csv", "articles.csv"
COLUMNS = ("t_dat", "customer_id", "article_id")
# Columns of an article that say something in words.
WORDS = ("product_type_name", "product_group_name", "colour_group_name", "garment_group_name", "detail_desc")
# Ten digits, the first of which is a zero, and is lost where a program takes them for numbers.
ID = "CASE WHEN length(article_id) = 9 THEN '0' || article_id ELSE article_id END"


@register("hm")
class HM(Format):
    """transactions_train.csv and articles.csv; images lie in folders of three digits, images/012/0123456789.jpg."""

    reads = "transactions_train.csv and articles.csv of H&M's Kaggle competition"

    @classmethod
    def recognise(cls, files: Sequence[Path]) -> str:
        for path in files:
            if fits(path, TRANSACTIONS) and "article_id" in first_line(path):
                return f"{path.name} has a column article_id"
        return ""

    def interactions(self) -> list[Rows]:
        columns = {"user": "customer_id", "item": ID, "time": "t_dat"}
        return [Rows(Table(self.one_of(TRANSACTIONS)), columns, COLUMNS)]

    def items(self) -> list[Rows]:
        found = []
        for path in self.all_of(ARTICLES):
            words = [name for name in Table(path).columns() if name in WORDS]
            columns = {"item": ID, "title": "prod_name", **{name: column(name) for name in words}}
            found.append(Rows(Table(path), columns, ("article_id", "prod_name", *words)))
        return found

    def published(self) -> dict[str, int]:
        return {TRANSACTIONS: 31_788_324, ARTICLES: 105_542}

    def notes(self) -> list[str]:
        return ["ids are ten digits, with the zero in front that programs lose which take them for numbers"]
