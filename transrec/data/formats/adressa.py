"""`adressa`: one week or three months of reader events of Adresseavisen (https://reclab.idi.ntnu.no/dataset)."""

from collections.abc import Sequence
from pathlib import Path

from transrec.data.formats.base import Format, Rows, first_line, fits, register
from transrec.data.tables import Table

DAY = "2017[0-9][0-9][0-9][0-9]"


@register("adressa")
class Adressa(Format):
    """One file of events per day, a JSON object per line with the article's title, from Adressa_one_week.tar.gz."""

    reads = "the days of Adressa, one_week/20170101 and so on, unpacked"

    @classmethod
    def recognise(cls, files: Sequence[Path]) -> str:
        for path in files:
            if fits(path, DAY) and '"eventId"' in first_line(path):
                return f"{path.name} is a day of events with an eventId"
        return ""

    def _days(self) -> list[Table]:
        return [self.table(path, kind="json") for path in self.all_of(DAY) or [self.one_of(DAY)]]

    def interactions(self) -> list[Rows]:
        columns = {"user": '"userId"', "item": "id", "time": "time"}
        return [Rows(day, columns, ("userId", "id", "time"), time_unit="s") for day in self._days()]

    def items(self) -> list[Rows]:
        # Every event of an article repeats its title, so take each article once.
        query = "(SELECT DISTINCT id, title, category1 FROM {table} WHERE id IS NOT NULL)"
        columns = {"item": "id", "title": "title", "category": "category1"}
        return [Rows(day, columns, ("id",), query, optional=("title", "category1")) for day in self._days()]

    def notes(self) -> list[str]:
        return ["events without an id belong to pages that are not articles, such as the front page"]
