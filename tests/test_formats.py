"""Formats: small files in exactly their publishers' layouts, including their pitfalls."""

import io
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from test_importing import Importing

from transrec.data.dataset import load_dataset
from transrec.data.formats import FORMATS, recognise
from transrec.data.images.fetch import read_links
from transrec.data.tables import import_extra
from transrec.data.vectors import VectorFile

pytest.importorskip("duckdb", reason="importing needs duckdb: pip install 'transrec[import]'")


@pytest.fixture
def importing(tmp_path) -> Importing:
    return Importing(tmp_path)


def lines(rows: list[tuple], delimiter: str = "\t", end: str = "\n") -> str:
    return "".join(delimiter.join(map(str, row)) + end for row in rows)


def kinds_of(importing: Importing) -> list[str]:
    return list(recognise([importing.folder / "raw"], general=True))


def interactions(importing: Importing) -> list[dict]:
    return import_extra("pyarrow.parquet").read_table(importing.out / "interactions.parquet").to_pylist()


def count_differences(importing: Importing) -> dict[str, int]:
    return {one["what"]: one["difference"] for one in importing.card["published"]}


# User, item, rating, time: with ties, several users, unordered.
RATINGS = [
    *(("1", "31", "2.5", 1260759144), ("2", "10", "4", 835355493), ("1", "1029", "3", 1260759179)),
    *(("1", "10", "1", 1260759144), ("2", "17", "5", 835355681), ("1", "5", "4", 1260759205)),
    *(("2", "39", "5", 835355604), ("2", "31", "3", 835355493), ("10", "5", "0.5", 942766420)),
]


def expected(rows: list[tuple] = RATINGS) -> dict[str, list[str]]:
    """Return sequences by time, and at equal times by item id as text."""
    by_user = sorted((user, time, item) for user, item, _, time in rows)
    return {user: [item for *_, item in group] for user, group in groupby(by_user, key=lambda row: row[0])}


def u_item(item: str, title: str, released: str, *genres: int) -> tuple:
    return item, title, released, "", "http://us.imdb.com/M/", *(int(place in genres) for place in range(19))


def test_movielens_100k_is_latin_1_with_flags_of_genres(importing):
    importing.write("u.data", lines([(user, item, round(float(rating)), time) for user, item, rating, time in RATINGS]))
    movies = [
        u_item("10", "Misérables, Les (1995)", "01-Jan-1995", 8, 13),
        u_item("5", 'The "5"', "", 4),
        u_item("267", "unknown", ""),
    ]
    importing.write("u.item", lines(movies, "|").encode("latin-1"))
    importing.write("u.user", "1|24|M|technician|85711\n")
    importing.write("u1.base", "1\t1\t5\t874965758\n")
    assert kinds_of(importing) == ["movielens"]
    assert importing("auto") == expected()
    items = {item: rest for item, *rest in importing.items}
    assert items["item_id"] == ["title", "genres", "released"]
    assert items["10"] == ["Misérables, Les (1995)", "Drama, Mystery", "01-Jan-1995"]
    assert (
        items["5"][:2] == ['The "5"', "Children's"] and items["267"] == ["unknown", "", ""] and items["31"] == [""] * 3
    )
    assert count_differences(importing) == {"users": 3 - 943, "items": 6 - 1682, "interactions": len(RATINGS) - 100_000}


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_movielens_of_two_colons(importing, encoding):
    rows = [(user, item, rating, time) for user, item, rating, time in RATINGS]
    importing.write("ml-1m/ratings.dat", lines(rows, "::"))
    movies = [("10", "Misérables, Les: A Film (1995)", "Drama|Children's"), ("31", "It's 7:30 (1996)", "Sci-Fi")]
    importing.write("ml-1m/movies.dat", lines(movies, "::").encode(encoding))
    importing.write("ml-1m/users.dat", "1::F::1::10::48067\n")
    assert importing("movielens", source=importing.folder / "raw/ml-1m") == expected()
    items = {item: rest for item, *rest in importing.items}
    assert items["10"] == ["Misérables, Les: A Film (1995)", "Drama, Children's"]
    assert items["31"] == ["It's 7:30 (1996)", "Sci-Fi"]
    assert count_differences(importing) == {
        "users": 3 - 6040,
        "interactions": len(RATINGS) - 1_000_209,
        "movies.dat": 2 - 3883,
    }


def test_movielens_of_later_years_quotes_titles(importing):
    importing.write("ratings.csv", lines([("userId", "movieId", "rating", "timestamp"), *RATINGS], ",", "\r\n"))
    movies = (
        'movieId,title,genres\r\n10,"Misérables, Les (1995)",Drama|War\r\n5,"A ""B"" (2000)",(no genres listed)\r\n'
    )
    importing.write("movies.csv", movies)
    importing.write("tags.csv", "userId,movieId,tag,timestamp\n")
    importing.write("links.csv", "movieId,imdbId,tmdbId\n")
    assert kinds_of(importing) == ["movielens"]
    assert importing("auto", "--min_rating", 1) == {user: items for user, items in expected().items() if user != "10"}
    items = {item: rest for item, *rest in importing.items}
    assert items["10"] == ["Misérables, Les (1995)", "Drama, War"] and items["5"] == ['A "B" (2000)', ""]
    assert importing.card["published"] == []


def test_movielens_names_the_line_of_a_mistake(importing):
    importing.write("ratings.dat", lines(RATINGS[:2], "::") + "1::10::five::978300760\n")
    assert "ratings.dat, line 3, rating: 'five' is not a number" in importing.fails("movielens")


INTER = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")


def test_recbole(importing):
    # The times of MovieLens-100k are floats, as RecBole writes them; ids keep their zeros.
    rows = [(user, f"0{item}", rating, f"{time}.0") for user, item, rating, time in RATINGS]
    importing.write("ml-100k.inter", "\ufeff" + lines([INTER, *rows]))
    items = [
        ("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"),
        ("010", '12 "Angry" Men & co', "1957", "Drama"),
        ("031", "Copycat\x85", "1995", "Crime Drama Thriller"),
        ("0999", "Never seen", "", ""),
    ]
    importing.write("ml-100k.item", lines(items))
    importing.write("ml-100k.user", "user_id:token\tage:token\n1\t24\n")
    importing.write("ml-100k.kg", "head_id:token\trelation_id:token\ttail_id:token\n")
    assert kinds_of(importing) == ["recbole"]
    assert importing("auto") == expected([(user, f"0{item}", rating, time) for user, item, rating, time in RATINGS])
    assert importing.items[0] == ["item_id", "title", "release_year", "class"]
    assert ["010", '12 "Angry" Men & co', "1957", "Drama"] in importing.items
    assert count_differences(importing)["users"] == 3 - 943
    ratings = {(row["user_id"], row["item_id"]): (row["rating"], row["time"]) for row in interactions(importing)}
    assert ratings["1", "031"] == (2.5, 1260759144)


def test_recbole_equals_pandas(importing):
    """A sample in the shape of MovieLens: most times occur several times, some items are rated twice."""
    import pandas

    draw = np.random.default_rng(0)
    sample = pandas.DataFrame(
        {
            "user_id:token": draw.integers(1, 60, 3000),
            "item_id:token": draw.integers(1, 300, 3000),
            "rating:float": draw.integers(1, 6, 3000),
            "timestamp:float": draw.integers(874724710, 874725710, 3000),
        }
    )
    importing.write("ml-100k.inter", sample.to_csv(sep="\t", index=False))
    user, item, _, time = sample.columns
    ids = sample.astype({user: str, item: str})
    ordered = ids.sort_values([user, time, item]).drop_duplicates([user, item])
    assert len(ordered) < len(sample) and ordered[time].duplicated().any()
    assert importing("recbole") == ordered.groupby(user)[item].agg(list).to_dict()


def test_recbole_keeps_the_publishers_split(importing):
    parts = {"train": RATINGS[:6], "valid": RATINGS[6:8], "test": RATINGS[8:]}
    for part, rows in parts.items():
        importing.write(f"set.{part}.inter", lines([INTER, *rows], end="\r\n"))
    importing.write("set.inter", lines([INTER, *RATINGS, ("9", "9", "1", 1)]))
    assert importing("recbole") == expected()
    wanted = {(user, item): part for part, rows in parts.items() for user, item, *_ in rows}
    wanted = {pair: {"valid": "validation"}.get(part, part) for pair, part in wanted.items()}
    assert {(row["user_id"], row["item_id"]): row["part"] for row in interactions(importing)} == wanted
    assert "set.inter is not read" in importing.card["notes"][0]


@pytest.mark.parametrize("other", ["timestamp/Books.train.csv", "last_out/Books.csv", "Books.test.csv"])
def test_amazon_2023_refuses_several_versions_of_the_same_interactions(importing, other):
    for name in ("last_out/Books.train.csv", "last_out/Books.valid.csv", "last_out/Toys.csv", other):
        importing.write(name, "user_id,parent_asin,rating,timestamp\nu,i,5,1567296000000\n")
    message = importing.fails("amazon2023")
    assert "hold the same interactions; give the paths of those to import" in message and other in message


def test_recbole_split_without_times_is_in_the_order_of_its_parts(importing):
    for part, items in {"train": "abc", "valid": "d", "test": "e"}.items():
        rows = "".join(f"u\t{item}\n" for item in items)
        importing.write(f"sci.{part}.inter", f"user_id:token\titem_id:token\n{rows}")
    assert importing("recbole") == {"u": ["a", "b", "c", "d", "e"]}


def test_recbole_with_columns_of_other_names_and_without_times(importing):
    importing.write(
        "lastfm.inter", lines([("user_id:token", "artist_id:token", "weight:float"), ("2", "b", 1), ("2", "a", 2)])
    )
    assert importing("recbole") == {"2": ["b", "a"]}
    assert importing.card["order"].startswith("as the source's rows")


def test_recbole_refuses_sequences_and_several_datasets(importing):
    header = ("user_id:token", "item_id_list:token_seq", "item_id:token")
    importing.write("sci.train.inter", lines([header, ("0", "1 2", "3")]))
    assert "sci.train.inter: holds a user's earlier items in each line (item_id_list:token_seq)" in importing.fails(
        "recbole"
    )
    importing.write("other.train.inter", lines([INTER, *RATINGS]))
    assert "holds several datasets, other, sci" in importing.fails("recbole")


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


IMAGE, TEXT = np.arange(24, dtype=np.float32).reshape(6, 4), -np.arange(12, dtype=np.float64).reshape(6, 2)
LABELLED = [
    *(("userID", "itemID", "rating", "timestamp", "x_label"), ("0", "5", "5.0", 100, 0), ("0", "2", "3.0", 90, 0)),
    *(("0", "1", "4.0", 110, 1), ("0", "3", "4.0", 120, 2), ("1", "2", "1.0", 10, 0)),
]


@pytest.fixture
def baby(importing) -> Importing:
    importing.write("baby.inter", lines(LABELLED))
    importing.write("image_feat.npy", npy(IMAGE))
    importing.write("text_feat.npy", npy(TEXT))
    # A pickled dict, which must never be opened.
    importing.write("user_graph_dict.npy", npy(np.array({"evil": 1}, dtype=object)))
    return importing


def test_mmrec_keeps_split_and_features(baby):
    assert kinds_of(baby) == ["mmrec"]
    assert baby("auto") == {"0": ["2", "5", "1", "3"], "1": ["2"]}
    parts = {(row["user_id"], row["item_id"]): row["part"] for row in interactions(baby)}
    assert [parts["0", item] for item in "2513"] == ["train", "train", "validation", "test"]
    vectors = VectorFile(baby.out / "features.npy")
    assert sorted(vectors.ids) == ["1", "2", "3", "5"]
    rows = [int(item) for item in vectors.ids]
    assert np.array_equal(vectors.states[:, 0], np.hstack([IMAGE[rows], TEXT[rows]]).astype(np.float32))
    assert "4 of image_feat.npy, then 2 of text_feat.npy" in baby.card["notes"][0]
    assert {"features.npy", "ids.txt"} <= {*baby.card["files"]}


def test_mmrec_with_one_kind_of_features_and_metadata(baby):
    baby.write("i_id_mapping.csv", "asin\titemID\nB00A\t2\nB00B\t5\n")
    baby.write("meta-baby.csv", 'itemID,title,brand,price\n2,"Cup, blue &amp; red",Nuk,3\n5,,,\n')
    assert baby("mmrec", "--features", "text")["1"] == ["2"]
    items = {item: rest for item, *rest in baby.items}
    assert items["item_id"][0] == "title" and set(items["item_id"]) == {"title", "original_id", "brand"}
    assert set(items["2"]) == {"Cup, blue & red", "B00A", "Nuk"} and set(items["5"]) == {"", "B00B"}
    vectors = VectorFile(baby.out / "features.npy")
    rows = [int(item) for item in vectors.ids]
    assert np.array_equal(vectors.states[:, 0], TEXT[rows].astype(np.float32))


@pytest.mark.parametrize(
    "content,message",
    [
        (npy(IMAGE[:3]), "image_feat.npy: has 3 rows, and none for item '3'; fetch it again, or give --features none"),
        (npy(IMAGE)[:-8], "cut off, "),
        (npy(np.array([None] * 6)), "pickled Python objects, which are never unpickled"),
        (npy(IMAGE[:, :, None]), "features must be floats [items, D]"),
    ],
)
def test_mmrec_features_that_do_not_fit(baby, content, message):
    baby.write("image_feat.npy", content)
    assert message in baby.fails("mmrec")
    assert baby("mmrec", "--features", "none") and not (baby.out / "features.npy").exists()


def test_microlens_of_times_in_milliseconds_and_quoted_titles(importing):
    rows = [(user, item, 1000 * time) for user, item, _, time in RATINGS]
    importing.write("MicroLens-50k_pairs.csv", lines([("user", "item", "timestamp"), *rows], ","))
    importing.write("MicroLens-50k_pairs.tsv", "1\t5 10\n")
    importing.write("MicroLens-50k_titles.csv", 'item,title\n10,"Cats, dogs and 猫"\n31,\n')
    importing.write("MicroLens-50k_likes_and_views.txt", "10\t12\t3456\n31\t0\t9\n")
    assert kinds_of(importing) == ["microlens"]
    assert importing("auto") == expected()
    items = {item: rest for item, *rest in importing.items}
    assert items["10"] == ["Cats, dogs and 猫", "12", "3456"] and items["31"] == ["", "0", "9"]
    assert interactions(importing)[0]["time"] == min(time for user, _, _, time in RATINGS if user == "1")
    assert count_differences(importing)["interactions"] == len(RATINGS) - 359_708


def test_microlens_of_sequences_and_titles_without_a_header(importing):
    importing.write("MicroLens-100k_pairs.tsv", "2\t10 5 31\n1\t5  10\n")
    importing.write("MicroLens-100k_title_en.csv", '5,"A title, of a video"\n10,Another\n')
    assert importing("auto") == {"1": ["5", "10"], "2": ["10", "5", "31"]}
    assert ["5", "A title, of a video"] in importing.items and ["10", "Another"] in importing.items


def test_pixelrec_has_items_first(importing):
    rows = [(f"i{item}", user, time) for user, item, _, time in RATINGS]
    importing.write("Pixel200K.csv", lines([("item_id", "user_id", "timestamp"), *rows], ","))
    importing.write(
        "item_info.csv",
        "item_id,view_number,comment_number,thumbup_number,share_number,coin_number,favorite_number,barrage_number,"
        'title_en,title,description,tag\ni10,1,2,3,4,5,6,7,A cat,"猫,\n一只",long,pets\n',
    )
    importing.write("cover/i10.jpg", b"")
    assert kinds_of(importing) == ["pixelrec"]
    assert importing("auto") == {user: [f"i{item}" for item in items] for user, items in expected().items()}
    rows_ = {item: dict(zip(importing.items[0][1:], rest, strict=True)) for item, *rest in importing.items[1:]}
    assert rows_["i10"] == {"title": "猫, 一只", "title_en": "A cat", "description": "long", "tag": "pets"}


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_ninerec_finds_its_columns_by_the_ids(importing, order):
    rows = [(f"u{user}", f"v{item}", time) for user, item, _, time in RATINGS]
    importing.write("KU_pair.csv", lines([tuple(row[place] for place in order) for row in rows], ","))
    importing.write("KU_behaviour.tsv", "u1\tv5 v10\n")
    importing.write("KU_item.csv", 'v10,"猫,狗","Cats, dogs"\nv31,鱼,Fish\n')
    importing.write("KU_url.csv", "v10,https://h/1.jpg?a=1\n")
    assert kinds_of(importing) == ["ninerec"]
    assert importing("auto") == {f"u{user}": [f"v{item}" for item in items] for user, items in expected().items()}
    assert ["v10", "Cats, dogs", "猫,狗"] in importing.items
    assert read_links(importing.out / "images.tsv") == {"v10": ["https://h/1.jpg?a=1"]}


def test_ninerec_without_times_is_read_from_its_behaviours(importing):
    importing.write("QB_behaviour.tsv", "u2\tv7 v1 v7\r\nu1\tv3\r\n")
    importing.write("QB_pair.csv", "u2,v1\nu2,v7\nu1,v3\n")
    assert importing("auto", "--duplicates", "keep") == {"u1": ["v3"], "u2": ["v7", "v1", "v7"]}
    assert "no times" in importing.card["notes"][0]


def test_ninerec_refuses_ids_of_another_kind(importing):
    for row in ("1,2,3", "u1,v1,5,6", "v1,v2"):
        importing.write("QB_pair.csv", f"{row}\n")
        shown = row.replace(",", ", ")
        assert f"QB_pair.csv, line 1: '{shown}' are not an id of a user (u1)" in importing.fails("ninerec")


def test_what_is_imported_is_read_by_runs(importing):
    rows = [(str(user), str(item), 5, 100 * user + item) for user in range(8) for item in range(user % 3, 9)]
    importing.write("ratings.dat", lines(rows, "::"))
    importing.write("movies.dat", lines([(item, f"Film {item} (1999)", "Drama") for item in range(9)], "::"))
    importing("movielens")
    dataset = load_dataset(importing.out, 6, 5)
    assert len(dataset.interactions.users) == 8 and dataset.catalog.texts[0] == "Film 0 (1999)"


def test_every_format_says_what_it_reads_and_takes_no_empty_folder(tmp_path: Path):
    assert all(FORMATS.get(name).reads for name in FORMATS.names())
    assert recognise([tmp_path], general=True) == {}
