"""`mind`: Microsoft's news recommendation data MINDsmall and MINDlarge (https://msnews.github.io)."""

from collections.abc import Sequence
from pathlib import Path

from transrec.data.formats.base import Format, Rows, first_line, fits, register
from transrec.data.tables import Table

BEHAVIORS = ("impression", "user", "time", "history", "shown")
NEWS = ("item", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities")
TIME = "%m/%d/%Y %I:%M:%S %p"


@register("mind")
class MIND(Format):
    """behaviors.tsv (one line per impression, each with the user's history) and news.tsv, both without a header.

    A user's sequence is the history in the user's earliest line, followed by the user's clicks in order of time.
    """

    reads = "behaviors.tsv and news.tsv of MIND, of one folder or of several (train, dev)"

    @classmethod
    def recognise(cls, files: Sequence[Path]) -> str:
        for path in files:
            line = first_line(path) if fits(path, "behaviors.tsv") else ""
            if line.count("\t") == len(BEHAVIORS) - 1 and any(fits(sibling, "news.tsv") for sibling in files):
                return "behaviors.tsv of five columns and news.tsv lie there"
        return ""

    @property
    def _behaviors(self) -> list[Path]:
        return self.all_of("behaviors.tsv") or [self.one_of("behaviors.tsv")]

    def interactions(self) -> list[Rows]:
        tables = [self.table(path, names=BEHAVIORS, delimiter="\t", quote="") for path in self._behaviors]
        return [rows for table in tables for rows in (self._history(table), self._clicks(table))]

    def _history(self, table: Table) -> Rows:
        # The history was read before the impression, so its items get the line's time, the latest possible.
        first = (
            f"(SELECT user, strftime(min(try_strptime(time, '{TIME}')), '{TIME}') AS time, "
            f"arg_min(history, (try_strptime(time, '{TIME}'), impression)) AS history FROM {{table}} GROUP BY user)"
        )
        read = "list_filter(string_split(history, ' '), lambda one: one <> '')"
        query = (
            "(SELECT user, time, unnest(read) AS item, unnest(range(len(read))) - len(read) AS position "
            f"FROM (SELECT user, time, {read} AS read FROM {first}))"
        )
        columns = {"user": "user", "item": "item", "time": "time", "position": "position"}
        return Rows(table, columns, ("user", "time", "history"), query, time_format=TIME)

    def _clicks(self, table: Table) -> Rows:
        query = (
            "(SELECT user, time, regexp_extract(one, '^(.*)-1$', 1) AS item FROM "
            "(SELECT user, time, unnest(string_split(shown, ' ')) AS one FROM {table}) WHERE one LIKE '%-1')"
        )
        columns = {"user": "user", "item": "item", "time": "time", "position": "0"}
        return Rows(table, columns, ("user", "time", "shown"), query, time_format=TIME)

    def items(self) -> list[Rows]:
        paths = self.all_of("news.tsv") or [self.one_of("news.tsv")]
        names = ("item", "title", "abstract", "category", "subcategory")
        columns = {name: name for name in names}
        return [Rows(self.table(path, names=NEWS, delimiter="\t", quote=""), columns, names) for path in paths]

    def repeats(self) -> str:
        return "each behaviors.tsv repeats the user's history" if len(self._behaviors) > 1 else ""

    def notes(self) -> list[str]:
        return [
            "a user's sequence is the history of the user's earliest line, whose times are not known and are that "
            "line's, then the clicks by time; news that were shown and not clicked are not read"
        ]
