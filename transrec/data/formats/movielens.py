"""`movielens`: MovieLens 100k, 1m, 10m, 20m, 25m, 32m and latest (https://grouplens.org/datasets/movielens)."""

import re
from collections.abc import Sequence
from pathlib import Path

from transrec.data.formats.base import Format, Rows, first_line, fits, register
from transrec.data.tables import column
from transrec.untrusted import read_regular

RATINGS = ("userId", "movieId", "rating", "timestamp")
MOVIES = ("movieId", "title", "genres")
# The genre flags in the last columns of u.item.
GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
U_ITEM = ("movieId", "title", "released", "video", "url", *GENRES)
LONGEST_MOVIES = 2**27
# As stated in the README files of the datasets.
COUNTS = {
    "100k": {"users": 943, "items": 1682, "interactions": 100_000},
    "1m": {"users": 6040, "interactions": 1_000_209, "movies.dat": 3883},
    "10m": {"users": 71_567, "interactions": 10_000_054, "movies.dat": 10_681},
    "20m": {"users": 138_493, "interactions": 20_000_263, "movies.csv": 27_278},
    "25m": {"users": 162_541, "interactions": 25_000_095, "movies.csv": 62_423},
    "32m": {"users": 200_948, "interactions": 32_000_204, "movies.csv": 87_585},
}
SIZE = re.compile(r"ml-?(100k|1m|10m|20m|25m|32m)", re.IGNORECASE)


@register("movielens")
class MovieLens(Format):
    """u.data and u.item of 100k, ratings.dat and movies.dat of 1m and 10m, ratings.csv and movies.csv of the others."""

    reads = "u.data and u.item, ratings.dat and movies.dat, or ratings.csv and movies.csv of MovieLens"

    @classmethod
    def recognise(cls, files: Sequence[Path]) -> str:
        names = {path.name.lower() for path in files}
        for path in files:
            first = first_line(path) if fits(path, "ratings.csv", "ratings.dat", "u.data") else ""
            if fits(path, "u.data") and re.fullmatch(r"\d+\t\d+\t\d\t\d+", first):
                return "u.data of MovieLens 100k lies there"
            if fits(path, "ratings.dat") and re.fullmatch(r"\d+::\d+::[\d.]+::\d+", first):
                return "ratings.dat has user::movie::rating::time in its first line"
            if first == ",".join(RATINGS) and (len(files) == 1 or names & {"movies.csv", "movies.csv.gz"}):
                return f"the header {first} of {path.name}"
        return ""

    def interactions(self) -> list[Rows]:
        path = self.one_of("u.data", "ratings.dat", "ratings.csv")
        columns = {"user": "userId", "item": "movieId", "rating": "rating", "time": "timestamp"}
        if fits(path, "ratings.csv"):
            table = self.table(path)
        else:
            table = self.table(path, names=RATINGS, delimiter="\t" if fits(path, "u.data") else "::", quote="")
        return [Rows(table, columns, RATINGS, time_unit="s")]

    def items(self) -> list[Rows]:
        return [self._movies(path) for path in self.all_of("u.item", "movies.dat", "movies.csv")]

    def _movies(self, path: Path) -> Rows:
        columns = {"item": "movieId", "title": "title"}
        if fits(path, "u.item"):
            names = {genre: genre.replace("'", "''") for genre in GENRES}
            flags = ", ".join(f"CASE {column(genre)} WHEN '1' THEN '{name}' END" for genre, name in names.items())
            columns |= {"genres": f"concat_ws(', ', {flags})", "released": "released"}
            table = self.table(path, names=U_ITEM, delimiter="|", quote="", encoding=_encoding(path))
            return Rows(table, columns, ("movieId", "title", "released", *GENRES))
        columns["genres"] = "nullif(replace(genres, '|', ', '), '(no genres listed)')"
        if fits(path, "movies.dat"):
            table = self.table(path, names=MOVIES, delimiter="::", quote="", encoding=_encoding(path))
        else:
            table = self.table(path)
        return Rows(table, columns, MOVIES)

    def published(self) -> dict[str, int]:
        if self.all_of("u.data"):
            return COUNTS["100k"]
        sizes = SIZE.findall(str(self.paths[0]))
        return COUNTS[sizes[-1].lower()] if sizes else {}


def _encoding(path: Path) -> str:
    """Return the encoding: Latin-1 for 100k and 1m, UTF-8 for 10m. Latin-1 text is practically never valid UTF-8."""
    try:
        read_regular(path, LONGEST_MOVIES).decode()
    except (OSError, UnicodeDecodeError):
        return "latin-1"
    return "utf-8"
