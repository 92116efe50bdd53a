"""Importing: from files as published to sequences, or to the file, line and remedy of a mistake."""

import gzip
import json
import shlex
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from transrec.data.dataset import load_dataset
from transrec.data.importing.command import main
from transrec.data.importing.database import Database
from transrec.data.importing.job import Job
from transrec.errors import Interrupted, TransrecError
from transrec.plugins import unload

pytest.importorskip("duckdb", reason="importing needs duckdb: pip install 'transrec[import]'")
pyarrow = pytest.importorskip("pyarrow", reason="importing needs pyarrow: pip install 'transrec[import]'")


class Importing:
    """Imports files of a folder into a new one, and reads the result."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.out = folder / "out"

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = content.encode() if isinstance(content, str) else content
        if name.endswith(".zst"):
            content = pyarrow.compress(content, codec="zstd", asbytes=True)
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    def __call__(self, kind: str, *words: object, source: object = None) -> dict[str, list[str]]:
        main([kind, str(source or self.folder / "raw"), *map(str, words), "--out", str(self.out)])
        return self.sequences

    @property
    def sequences(self) -> dict[str, list[str]]:
        rows = (line.split("\t") for line in (self.out / "users.tsv").read_text().splitlines())
        return {user: items.split() for user, items in rows}

    @property
    def items(self) -> list[list[str]]:
        return [line.split("\t") for line in (self.out / "items.tsv").read_text().split("\n")[:-1]]

    @property
    def card(self) -> dict:
        return json.loads((self.out / "dataset.json").read_text())["import"]

    def fails(self, kind: str, *words: object, source: object = None) -> str:
        """Return the error message of an import, which must leave nothing behind."""
        before = sorted(self.folder.iterdir())
        with pytest.raises(TransrecError) as error:
            self(kind, *words, source=source)
        assert sorted(self.folder.iterdir()) == before
        return str(error.value)


@pytest.fixture
def importing(tmp_path) -> Importing:
    return Importing(tmp_path)


MIND_BEHAVIORS = (
    "1\tU1\t11/15/2019 8:55:22 AM\tN1 N2\tN3-1 N4-0\n"
    "2\tU1\t11/14/2019 8:55:22 PM\tN1 N2\tN4-1 N5-0 N3-0\n"
    "3\tU2\t11/11/2019 12:05:00 AM\t\tN1-0 N2-1\n"
)
MIND_NEWS = "".join(f'N{n}\tnews\tworld\tTitle "{n}\tAbstract\thttps://\t[]\t[]\n' for n in range(1, 6))


def test_mind_is_the_history_and_then_the_clicks_by_time(importing):
    importing.write("behaviors.tsv", MIND_BEHAVIORS)
    importing.write("news.tsv", MIND_NEWS)
    assert importing("auto") == {"U1": ["N1", "N2", "N4", "N3"], "U2": ["N2"]}
    assert importing.items[:2] == [
        ["item_id", "title", "abstract", "category", "subcategory"],
        ["N1", 'Title "1', "Abstract", "news", "world"],
    ]


def test_mind_of_two_folders_reads_the_history_once(importing):
    first, later = MIND_BEHAVIORS.splitlines()[:2]
    importing.write("MIND_train/behaviors.tsv", f"{later}\n")
    importing.write("MIND_dev/behaviors.tsv", first.replace("N1 N2", "N1 N2 N4") + "\n")
    importing.write("MIND_train/news.tsv", MIND_NEWS)
    assert importing("mind") == {"U1": ["N1", "N2", "N4", "N3"]}
    message = importing.fails("mind", "--duplicates", "keep", "--overwrite")
    assert message.startswith("--duplicates keep: each behaviors.tsv repeats the user's history; leave it out")


def test_a_run_on_a_raw_folder_names_the_command(importing):
    raw = importing.write("behaviors.tsv", MIND_BEHAVIORS).parent
    importing.write("news.tsv", MIND_NEWS)
    with pytest.raises(TransrecError, match=r"is raw mind .* scripts/import_dataset.py mind \S+/raw --out"):
        load_dataset(raw, 20, 5)


RATINGS = (
    b"\xef\xbb\xbfuserId,movieId,rating,timestamp\r\n"
    b"2,10,4,20\r\n1,007,5,30\r\n1,0010,3,30\r\n1,8,2.5,10\r\n2,8,,5\r\n1,8,4,40\r\n,8,4,40\r\n"
)


def test_a_table_with_every_trap(importing):
    importing.write("ratings.csv", RATINGS)
    titles = importing.folder / "movies.csv"
    titles.write_bytes(
        'movieId,title,genres\n007,"Bond, James &amp; Co\r\n (1962)",Action\n8,\t Caf\u00e9  x,\n99,New,\n'.encode()
    )
    sequences = importing("table", "--items", titles, "--item_columns", "genres")
    # At equal times, items are ordered by id as text; of two interactions with an item, the earlier one is kept.
    assert sequences == {"1": ["8", "0010", "007"], "2": ["8", "10"]}
    assert importing.items == [
        ["item_id", "title", "genres"],
        ["0010", "", ""],
        ["007", "Bond, James & Co (1962)", "Action"],
        ["10", "", ""],
        ["8", "Caf\u00e9 x", ""],
        ["99", "New", ""],
    ]
    card = importing.card
    assert card["dropped"] == {"without a user": 1, "duplicates": 1}
    assert card["counts"] == {"users": 2, "interactions": 5, "items": 5, "items touched": 4}
    assert card["sources"][0]["rows"] == 7 and len(card["sources"][0]["sha256"]) == 64
    dataset = load_dataset(importing.out, 20, 3)
    assert dataset.catalog.columns == ["item_id", "title", "genres"]
    assert dataset.interactions.users == ["1", "2"]


def test_times_and_ratings_are_kept_beside_the_sequences(importing):
    import pyarrow.parquet as parquet

    importing.write("ratings.csv", RATINGS)
    importing("table")
    table = parquet.read_table(importing.out / "interactions.parquet")
    assert list(map(str, table.schema.types)) == ["string", "string", "int64", "float"]
    assert list(zip(*table.to_pydict().values(), strict=True)) == [
        ("1", "8", 10, 2.5),
        ("1", "0010", 30, 3),
        ("1", "007", 30, 5),
        ("2", "8", 5, None),
        ("2", "10", 20, 4),
    ]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--duplicates", "keep"], {"1": ["8", "0010", "007", "8"], "2": ["8", "10"]}),
        (["--min_rating", "3"], {"1": ["0010", "007", "8"], "2": ["10"]}),
        (["--since", "10", "--until", "30"], {"1": ["8"], "2": ["10"]}),
        (["--min_length", "3"], {"1": ["8", "0010", "007"]}),
        (["--max_length", "2"], {"2": ["8", "10"]}),
        (["--ties", "row"], {"1": ["8", "007", "0010"], "2": ["8", "10"]}),
        (["--k_core", "1"], {"1": ["8", "0010", "007"], "2": ["8", "10"]}),
    ],
)
def test_what_is_dropped(importing, flags, expected):
    importing.write("ratings.csv", RATINGS)
    assert importing("table", *flags) == expected


def test_forms_of_a_table(importing):
    import pyarrow.csv as read_csv
    import pyarrow.parquet as parquet

    raw = importing.write("ratings.csv", RATINGS)
    expected = importing("table")
    lines = [line.split(",") for line in RATINGS.decode("utf-8-sig").splitlines()]
    text = "\n".join(lines_of := ["\t".join(line) for line in lines])
    objects = "\n".join(json.dumps(dict(zip(lines[0], line, strict=True))) for line in lines[1:])
    table = read_csv.read_csv(raw, convert_options=read_csv.ConvertOptions(column_types={"movieId": "string"}))
    parquet.write_table(table, importing.folder / "all.parquet")
    files = [
        importing.write("a.tsv.gz", text),
        importing.write("b.jsonl.gz", objects),
        importing.write("e.csv.zst", RATINGS),
        importing.folder / "all.parquet",
    ]
    files.append(importing.write("c.csv", "\n".join(",".join(reversed(line)) for line in lines)))
    files.append(importing.write("d.tsv", "\n".join(lines_of[1:])))
    for file in files:
        header = ["--header", *lines[0]] if file.name == "d.tsv" else []
        assert importing("table", *header, "--overwrite", source=file) == expected, file


def test_netflix_names_an_item_above_its_lines(importing):
    importing.write("combined_data_1.txt", "1:\n7,3,2005-09-06\n8,5,2005-05-13\n2:\n7,4,2004-09-06\n")
    titles = importing.folder / "movie_titles.csv"
    titles.write_bytes("1,2003,Dinosaur, Planet\n2,2004,Isle of Caf\xe9\n".encode("latin-1"))
    header = ["--item_heads", "--header", "user", "rating", "date"]
    items = ["--items", titles, "--items_header", "item", "year", "title", "--items_rest", "--encoding", "latin-1"]
    assert importing("table", *header, *items) == {"7": ["2", "1"], "8": ["1"]}
    assert importing.items[1:] == [["1", "Dinosaur, Planet"], ["2", "Isle of Caf\xe9"]]


HM_TRANSACTIONS = (
    "t_dat,customer_id,article_id,price,sales_channel_id\n"
    '2018-09-21,"aa",0108775015,0.05,2\n2018-09-20,aa,0663713001,0.05,2\n2018-09-20,aa,0108775044,0.03,1\n'
)


def test_hm_keeps_the_zero_in_front(importing):
    importing.write("transactions_train.csv", HM_TRANSACTIONS)
    articles = 'article_id,prod_name,detail_desc\n108775015,Strap top,"Jersey, with\nstraps"\n0663713001,Midi,\n'
    importing.write("articles.csv", articles)
    importing.write("images/066/0663713001.jpg", b"")
    assert importing("auto") == {"aa": ["0108775044", "0663713001", "0108775015"]}
    assert importing.items[1] == ["0108775015", "Strap top", "Jersey, with straps"]
    assert importing.card["published"][0]["difference"] == 3 - 31_788_324


def test_amazon_2023(importing):
    reviews = [
        {"rating": 5.0, "asin": "B1", "parent_asin": "P1", "user_id": "u1", "timestamp": 1588687728923, "images": []},
        {"rating": 2.0, "asin": "B2", "parent_asin": "0007", "user_id": "u1", "timestamp": 1588687728922},
    ]
    meta = [
        {
            "parent_asin": "P1",
            "title": "A &quot;b&quot;",
            "store": "S",
            "features": ["f, 1", 'f"2'],
            "images": [{"large": "http://l", "hi_res": None}],
        },
        {"parent_asin": "0007", "title": "", "images": []},
    ]
    importing.write("Cat.jsonl.gz", "\n".join(map(json.dumps, reviews)))
    importing.write("meta_Cat.jsonl.gz", "\n".join(map(json.dumps, meta)))
    assert importing("auto") == {"u1": ["0007", "P1"]}
    rows = {row[0]: dict(zip(importing.items[0], row, strict=True)) for row in importing.items[1:]}
    assert rows["P1"]["title"] == 'A "b"' and rows["P1"]["features"] == 'f, 1 f"2' and rows["0007"]["title"] == ""
    assert (importing.out / "images.tsv").read_text() == "item_id\turl\nP1\thttp://l\n"


def test_the_split_of_amazon_2023s_benchmark_is_kept(importing):
    import pyarrow.parquet as parquet

    for number, part in enumerate(("train", "valid", "test")):
        row = f"u1,P{number},5.0,{1588687728923 + number}\n"
        importing.write(f"Cat.{part}.csv", "user_id,parent_asin,rating,timestamp\n" + row)
    assert importing("auto") == {"u1": ["P0", "P1", "P2"]}
    parts = parquet.read_table(importing.out / "interactions.parquet")["part"].to_pylist()
    assert parts == ["train", "validation", "test"]


@pytest.mark.parametrize("form", ["reviews", "ratings"])
@pytest.mark.parametrize("kind", ["amazon2014", "amazon2018"])
def test_older_amazon(importing, kind, form):
    rows = [("A1AAAAAAAAAAA", "0000013714", 5.0, 200), ("A1AAAAAAAAAAA", "B000000001", 1.0, 1000000000)]
    rows = [(user, item, rating, 1_000_000_000 + time) for user, item, rating, time in rows]
    is_old = kind == "amazon2014"
    if form == "ratings":
        name = "ratings_Cat.csv" if is_old else "Cat.csv"
        lines = [row if is_old else (row[1], row[0], *row[2:]) for row in rows]
        importing.write(name, "".join(",".join(map(str, line)) + "\n" for line in lines))
    else:
        keys = ("reviewerID", "asin", "overall", "unixReviewTime")
        content = "".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows)
        importing.write("reviews_Cat_5.json.gz" if is_old else "Cat_5.json.gz", content)
    meta = {"asin": "0000013714", "title": "It's &lt;new&gt;", "brand": "B"}
    if is_old:
        meta |= {"categories": [["Books", "Art"]], "imUrl": "http://i"}
    else:
        meta |= {"category": ["Books", "Art"], "imageURLHighRes": ["http://i"]}
    importing.write("meta_Cat.json.gz", (repr(meta) if is_old else json.dumps(meta)) + "\n")
    assert importing("auto") == {"A1AAAAAAAAAAA": ["0000013714", "B000000001"]}
    assert importing.card["format"] == kind
    row = dict(zip(*importing.items[:2], strict=True))
    assert row["title"] == "It's <new>" and row["categories"] == "Books, Art"
    assert (importing.out / "images.tsv").read_text() == "item_id\turl\n0000013714\thttp://i\n"


def test_adressa_takes_articles_alone(importing):
    events = [
        {"eventId": 1, "userId": "cx:1", "time": 1483225202, "url": "http://adressa.no"},
        {"eventId": 2, "userId": "cx:1", "time": 1483225230, "id": "b2", "title": "P\u00e5 tur", "category1": "a|b"},
        {"eventId": 3, "userId": "cx:1", "time": 1483225201, "id": "a1", "title": "\u00d8l"},
    ]
    content = "\n".join(json.dumps(event, ensure_ascii=False) for event in events)
    importing.write("one_week/20170101", content)
    importing.write("one_week/20170102", content.replace("cx:1", "cx:2"))
    assert importing("auto", source=importing.folder / "raw/one_week") == {"cx:1": ["a1", "b2"], "cx:2": ["a1", "b2"]}
    assert importing.items[1:] == [["a1", "\u00d8l", ""], ["b2", "P\u00e5 tur", "a|b"]]
    assert importing.card["dropped"] == {"without an item": 2}


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (b"", [], "t.csv: is empty"),
        (b"user,item,time\n", [], "no interaction is left: the source has no rows"),
        (b"user,item,time\n1,2,3\n1,2\n", [], "t.csv, line 3: has 2 columns where there should be 3"),
        (b'user,item,time\n1,2,3\n1,"2,3\n1,2,3\n', [], "t.csv, line 3: opens a quote"),
        (b'user,item,time\n1,"2\n3",3\n1,2,x\n', [], "t.csv, line 4, time: 'x' is not a number"),
        (b"user,item,time\n1,2,2019-01-31\n1,2,2019-02-31\n", [], "t.csv, line 3, time: '2019-02-31' is not a date"),
        (b"user,item,rating\n1,2,3\n1,2,good\n", [], "t.csv, line 3, rating: 'good' is not a number"),
        (b"user,item,time\n1,caf\xe9,3\n", [], "t.csv, line 2: byte 0xe9 is not UTF-8; name the file's"),
        (b"user,item\n" + b"1,2\n" * 9999 + b"1,\xe9\n", [], "t.csv, line 10001: is not UTF-8; name the file's"),
        (b"user_id,item,time\n1,2,3\n", ["--user", "userid"], "no column 'userid'; did you mean user_id?"),
        (b"who,what\n1,2\n", [], "none of its columns is named as that of users; name it with --user"),
        (b"user,item\n1,a b\n1,a_b\n", [], "the item ids 'a b' and 'a_b' would both become 'a_b'"),
        (b"user,item\n1,2\n", ["--since", "2019-01-01"], "--since and --until: the source has no times"),
        (b"user,item\n1,2\n", ["--k_core", "2"], "no user is left of --k_core 2"),
        (b"user,item\n1,2\n", ["--memory", "lots"], "--memory lots: no amount of memory"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_leaves_nothing(importing, content, flags, message):
    importing.write("t.csv", content)
    assert message in importing.fails("table", *flags)


def test_damaged_and_mistaken_files(importing):
    whole = gzip.compress(b"user,item,time\n" + b"".join(b"%d,%d,3\n" % (n, n * 7919 % 9973) for n in range(9999)))
    raw = importing.folder / "raw"
    for name, content, message in (
        ("t.csv.gz", whole[:-2000], "t.csv.gz: is cut short or damaged"),
        ("t.csv.gz", b"user,item\n", "t.csv.gz: is not packed by gzip"),
        ("t.csv.zst", pyarrow.compress(gzip.decompress(whole), codec="zstd", asbytes=True)[:-200], "is cut short"),
        ("t.jsonl", b'{"user": 1, "item": 2}\n{"user": 1, "item"\n', "t.jsonl, line 2: "),
        ("t.parquet", b"PAR1 and no more", "t.parquet: is not a Parquet file"),
    ):
        raw.mkdir(exist_ok=True)
        (raw / name).write_bytes(content)
        assert message in importing.fails("table", source=raw / name)
    assert "its format cannot be recognised" in importing.fails("auto")
    assert "no file fits behaviors.tsv; what is there:" in importing.fails("mind")
    assert "--format mnd: unknown; did you mean mind?" in importing.fails("mnd")


def test_an_existing_folder_is_replaced_only_if_an_import_wrote_it(importing):
    importing.write("ratings.csv", RATINGS)
    importing("table")
    assert "exists already; give another folder, or --overwrite" in importing.fails("table")
    importing("table", "--overwrite", "--min_length", "3")
    assert list(importing.sequences) == ["1"]
    (importing.out / "notes.txt").touch()
    assert "holds notes.txt, which no import wrote" in importing.fails("table", "--overwrite")
    raw = ["table", str(importing.folder / "raw"), "--out", str(importing.folder / "raw")]
    with pytest.raises(TransrecError, match=r"holds ratings\.csv, which is to be read"):
        main(raw)


def test_an_import_that_was_stopped_goes_on(importing, monkeypatch):
    from transrec.data.importing import reading, selecting

    importing.write("ratings.csv", RATINGS)
    expected = importing("table")
    find_core = selecting.find_core
    monkeypatch.setattr(selecting, "find_core", lambda *_: (_ for _ in ()).throw(Interrupted(2)))
    with pytest.raises(Interrupted) as stop:
        importing("table", "--overwrite")
    assert "goes on from there" in stop.value.advice
    monkeypatch.setattr(selecting, "find_core", find_core)
    monkeypatch.setattr(reading, "insert", None)
    assert importing("table", "--overwrite") == expected
    assert sorted(path.name for path in importing.folder.iterdir()) == ["out", "raw"]


def test_a_signal_stops_a_query(tmp_path):
    def stop(number, frame):
        raise Interrupted(signal.SIGINT)

    before = signal.signal(signal.SIGALRM, stop)
    database = Database(tmp_path, memory=2**29, threads=1)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Interrupted):
            database.run("SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b", label="count")
        assert database.rows("SELECT 1") == [(1,)]
        database.close()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_format_of_ones_own_is_one_file(importing):
    plugin = importing.folder / "mine.py"
    plugin.write_text(
        "from transrec.data.formats import Format, Rows, register\n"
        "@register('pairs')\n"
        "class Pairs(Format):\n"
        "    def interactions(self):\n"
        "        rows = self.table(self.one_of('*.pairs'), names=('who', 'what'), delimiter='|')\n"
        "        return [Rows(rows, {'user': 'who', 'item': 'what'}, ('who', 'what'))]\n"
    )
    importing.write("a.pairs", "u|b\nu|a\n")
    try:
        assert importing("pairs", "--plugin", plugin) == {"u": ["b", "a"]}
    finally:
        unload(plugin)


def test_a_users_own_id_is_preferred_to_that_of_a_session(importing):
    importing.write("clicks.csv", "session_id,user_id,product_id,item_id\ns1,u,p,a\ns2,u,p,b\n")
    assert importing("table") == {"u": ["a", "b"]}


def test_the_encoding_is_known_when_a_header_is_read(importing):
    importing.write("a.csv", "user,item,title,größe\nu,i,Café,1\n".encode("latin-1"))
    assert importing("table", "--encoding", "latin-1", "--item_columns", "größe") == {"u": ["i"]}
    assert importing.items[1] == ["i", "Café", "1"]


def test_ids_with_colons_are_no_headers(importing):
    importing.write("a.csv", "user,item\n" + "".join(f"user:{n},item:{m}\n" for n in (1, 2) for m in range(5)))
    items = [f"item:{m}" for m in range(5)]
    assert importing("table") == {"user:1": items, "user:2": items}
    (importing.out / "items.tsv").write_text("".join(f"{item}\tCall Me by Your Name\n" for item in items))
    assert load_dataset(importing.out, 20, 5).split.item_count == 5


def test_columns_that_differ_only_in_case_are_refused(importing):
    importing.write("a.csv", "USER,user,item\nwrong,u,i\n")
    assert "has the columns 'user' and 'USER'; rename one of them" in importing.fails("table", "--user", "user")


def test_parquet_without_the_mark_of_text_is_text(importing):
    columns = {"user": [b"u\xc3\xa9", b"v"], "item": [b"a", b"b"], "title": ['Café "x"'.encode(), b""]}
    path = importing.write("a.parquet", b"")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), path)
    assert importing("table") == {"ué": ["a"], "v": ["b"]}
    assert importing.items[1] == ["a", 'Café "x"']


@pytest.mark.parametrize("name", ["a.csv.zip", "a.csv.bz2"])
def test_packed_files_are_to_be_unpacked(importing, name):
    path = importing.write(name, b"PK\x03\x04\xe9")
    assert f"{name}: is packed; unpack it first" in importing.fails("table", source=path)


@pytest.mark.parametrize("text", ["nan", "inf", "2019", "20190901"])
def test_moments_that_are_none_or_two_are_refused(importing, text):
    importing.write("a.csv", "user,item,time\nu,i,1567296000\n")
    assert f"--since {text}: " in importing.fails("table", "--since", text)


@pytest.mark.parametrize("time", ["1e300", "150000000000000000000"])
def test_a_single_time_beyond_all_others_is_named(importing, time):
    rows = "".join(f"u{n},i,{1567296000 + n}\n" for n in range(9))
    importing.write("a.csv", f"user,item,time\n{rows}v,i,{time}\n")
    assert f"a.csv: has the time {float(time):.15g}, which lies after the year 9999" in importing.fails("table")


def test_a_rating_beyond_single_precision_is_named(importing):
    importing.write("a.csv", "user,item,rating\nu,i,1e300\n")
    assert "a.csv, line 2, rating: '1e300' is not a number" in importing.fails("table")


def test_an_edited_format_does_not_go_on_from_the_rows_of_the_old_one(importing, monkeypatch):
    plugin, text = (
        importing.folder / "mine.py",
        (
            "from transrec.data.formats import Format, Rows, register\n"
            "@register('pairs')\n"
            "class Pairs(Format):\n"
            "    def interactions(self):\n"
            "        table = self.table(self.one_of('*.pairs'), names=('one', 'two'), delimiter='|')\n"
            "        return [Rows(table, {'user': 'one', 'item': 'two'}, ('one', 'two'))]\n"
        ),
    )
    plugin.write_text(text.replace("'user': 'one', 'item': 'two'", "'user': 'two', 'item': 'one'"))
    importing.write("a.pairs", "u|b\nu|a\n")
    signatures = []
    monkeypatch.setattr(Job, "run", lambda job, work: signatures.append(job._signature()) or sys.exit())
    for _ in range(2):
        try:
            with pytest.raises(SystemExit):
                importing("pairs", "--plugin", plugin)
        finally:
            unload(plugin)
        plugin.write_text(text)
    assert signatures[0] != signatures[1]


events = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=40
)


def users_file(folder: Path, rows: list, *flags: str) -> bytes:
    """Return users.tsv of an import of rows (user, item, time, rating)."""
    (folder / "rows.csv").write_text(
        "user,item,time,rating\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    )
    main(["table", str(folder / "rows.csv"), "--out", str(folder / "new"), "--overwrite", *flags])
    return (folder / "new/users.tsv").read_bytes()


few = settings(max_examples=8, deadline=None, derandomize=True)


@few
@given(rows=events, random=st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(tmp_path_factory, rows, random):
    folder = tmp_path_factory.mktemp("shuffled")
    first = users_file(folder, rows)
    parquet = (folder / "new/interactions.parquet").read_bytes()
    random.shuffle(rows)
    assert users_file(folder, rows) == first
    assert (folder / "new/interactions.parquet").read_bytes() == parquet


@few
@given(rows=events, how=st.sampled_from(["drop", "keep", "consecutive"]))
def test_what_was_imported_is_imported_as_it_is(tmp_path_factory, rows, how):
    folder = tmp_path_factory.mktemp("again")
    first = users_file(folder, rows, "--duplicates", how)
    main(["table", str(folder / "new/interactions.parquet"), "--out", str(folder / "again"), "--duplicates", how])
    assert (folder / "again/users.tsv").read_bytes() == first


@few
@given(rows=events)
def test_the_core_is_a_fixed_point_and_the_largest(tmp_path_factory, rows):
    left = {(user, item) for user, item, *_ in rows}
    while True:
        users, items = Counter(user for user, _ in left), Counter(item for _, item in left)
        smaller = {(user, item) for user, item in left if users[user] >= 2 and items[item] >= 2}
        if smaller == left:
            break
        left = smaller
    folder = tmp_path_factory.mktemp("core")
    if not left:
        with pytest.raises(TransrecError, match="no user is left"):
            users_file(folder, rows, "--k_core", "2")
        return
    lines = [line.split("\t") for line in users_file(folder, rows, "--k_core", "2").decode().splitlines()]
    assert {(int(user), int(item)) for user, of_user in lines for item in of_user.split()} == left


PUBLISHED = {
    "yelp_academic_dataset_review.json": [
        {"user_id": f"u{user}", "business_id": f"b{item}", "stars": 5.0, "date": f"2018-07-07 22:0{item}:00"}
        for user in range(5)
        for item in range(5)
    ],
    "yelp_academic_dataset_business.json": [
        {"business_id": "b0", "name": "Caf\u00e9", "categories": "a, b", "city": "X"}
    ],
    "goodreads_interactions_poetry.json.gz": [
        {"user_id": "u", "book_id": "2", "rating": 0, "date_added": "Thu Aug 17 15:15:28 -0700 2017"},
        {"user_id": "u", "book_id": "1", "rating": 5, "date_added": "Thu Aug 17 23:15:28 +0200 2017"},
    ],
    "goodreads_books_poetry.json.gz": [{"book_id": "1", "title": "T", "description": "D\n", "image_url": "http://i"}],
    "big_matrix.csv": "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio\n"
    "0,148,9,6,2020-07-05 05:27:48.378,20200705,1593898068.378,2.1\n"
    "0,183,9,6,2020-07-05 05:28:00.057,20200705,1593898080.057,0.7\n"
    "0,360,9,6,2020-07-05 05:27:48.1,20200705,1593898068.1,2.0\n",
    "kuairec_caption_category.csv": 'video_id,manual_cover_text,caption,topic_tag\n148,x,"\u7cbe\u795e, a",[]\n',
    "movie_titles.csv": "1,2003,Dinosaur, Planet\n",
    **{f"combined_data_{n}.txt": f"{n}:\n7,4,2005-09-0{5 - n}\n7,3,2005-09-01\n" for n in range(1, 5)},
}
SEQUENCES = {
    "Yelp": {f"u{user}": [f"b{item}" for item in range(5)] for user in range(5)},
    "Goodreads": {"u": ["1", "2"]},
    "KuaiRec": {"0": ["360", "148"]},
    "Netflix": {"7": ["4", "3", "2", "1"]},
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_the_commands_of_the_page(importing, monkeypatch, name):
    page = (REPOSITORY / "Dataset/README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = [line for line in page.splitlines() if line.endswith(f"--out Dataset/{name}")]
    _, script, *words = shlex.split(line)
    assert (REPOSITORY / script).exists()
    for file in {word for word in words if word in PUBLISHED}:
        rows = PUBLISHED[file]
        importing.write(file, rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(importing.folder / "raw")
    main(words)
    importing.out = importing.folder / "raw/Dataset" / name
    assert importing.sequences == SEQUENCES[name]
    assert sum(bool(row[1]) for row in importing.items[1:]) == 1
