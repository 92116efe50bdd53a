"""`hm`: clothes purchases from H&M's Kaggle competition (h-and-m-personalized-fashion-recommendations)."""

from collections.abc import Sequence
from pathlib import Path

from transrec.data.formats.base import Format, Rows, first_line, fits, register
from transrec.data.tables import column

TRANSACTIONS, ARTICLES = "transactions_train.csv", "articles.csv"
COLUMNS = ("t_dat", "customer_id", "article_id")
# Columns of articles.csv that hold text.
TEXT_COLUMNS = ("product_type_name", "product_group_name", "colour_group_name", "garment_group_name", "detail_desc")
# Ids have ten digits. Programs that read them as numbers lose the leading zero, which is restored here.
ITEM_ID = "CASE WHEN length(article_id) = 9 THEN '0' || article_id ELSE article_id END"


@register("hm")
class HM(Format):
    """transactions_train.csv and articles.csv; images are in folders of three digits, images/012/0123456789.jpg."""

    reads = "transactions_train.csv and articles.csv of H&M's Kaggle competition"

    @classmethod
    def recognise(cls, files: Sequence[Path]) -> str:
        for path in files:
            if fits(path, TRANSACTIONS) and "article_id" in first_line(path):
                return f"{path.name} has a column article_id"
        return ""

    def interactions(self) -> list[Rows]:
        columns = {"user": "customer_id", "item": ITEM_ID, "time": "t_dat"}
        return [Rows(self.table(self.one_of(TRANSACTIONS)), columns, COLUMNS)]

    def items(self) -> list[Rows]:
        rows = []
        for path in self.all_of(ARTICLES):
            texts = [name for name in self.table(path).columns() if name in TEXT_COLUMNS]
            columns = {"item": ITEM_ID, "title": "prod_name", **{name: column(name) for name in texts}}
            rows.append(Rows(self.table(path), columns, ("article_id", "prod_name", *texts)))
        return rows

    def published(self) -> dict[str, int]:
        return {TRANSACTIONS: 31_788_324, ARTICLES: 105_542}

    def notes(self) -> list[str]:
        return ["ids are ten digits, with the zero in front that programs lose which take them for numbers"]
