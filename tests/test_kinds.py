"""Every raw dataset format: recognition, reading in any order, export and reading it again, and errors."""

import gzip
import zlib
from collections import Counter
from random import Random

import pytest
from raw_files import ITEMS, KINDS, Event
from test_importing import Importing

from transrec.data.dataset import load_dataset
from transrec.data.formats import FORMATS
from transrec.errors import TransrecError

pytest.importorskip("duckdb", reason="importing needs duckdb: pip install 'transrec[import]'")
pyarrow = pytest.importorskip("pyarrow", reason="importing needs pyarrow: pip install 'transrec[import]'")
each_kind = pytest.mark.parametrize("name", KINDS)


def some_events() -> list[Event]:
    """Return unordered events with ties in time, repeated items, and rare users and items."""
    random = Random(0)
    places = [(int(8 * random.random() ** 2), ITEMS[int(10 * random.random() ** 2)]) for _ in range(60)]
    return [(user, item, random.randint(1, 5), random.randint(0, 4)) for user, item in places]


EVENTS = some_events()
# Formats in which an imported dataset is exported and imported once more.
AGAIN = ("hm", "mind", "mmrec", "recbole")


def core(sequences: dict[str, list[str]], least: int) -> dict[str, list[str]]:
    """Return the sequences left after repeatedly removing users and items with fewer than `least` interactions."""
    while True:
        items = Counter(item for sequence in sequences.values() for item in sequence)
        kept = {user: [item for item in sequence if items[item] >= least] for user, sequence in sequences.items()}
        kept = {user: sequence for user, sequence in kept.items() if len(sequence) >= least}
        if kept == sequences:
            return kept
        sequences = kept


@pytest.fixture
def importing(tmp_path) -> Importing:
    return Importing(tmp_path)


def test_every_kind_has_files():
    assert sorted(KINDS) == FORMATS.names()


@each_kind
def test_a_kind_is_recognised_and_read_in_any_order_and_again(importing, name):
    kind, raw = KINDS[name], importing.folder / "raw"
    kind.write(raw, EVENTS)
    with pytest.raises(TransrecError, match=rf"is raw {name} .* scripts/import_dataset.py {name} \S+/raw --out"):
        load_dataset(raw, 5, 3)
    expected = kind.expected(EVENTS)
    assert importing("auto") == expected
    assert importing.card["format"] == name and importing.card["dropped"].keys() <= {"duplicates"}

    shuffled = Random(1).sample(EVENTS, len(EVENTS))
    assert shuffled != EVENTS
    kind.write(raw, shuffled, end="\r\n")
    file = raw / kind.file
    packed = pyarrow.compress(file.read_bytes(), codec="zstd", asbytes=True)
    file.with_name(f"{file.name}.zst").write_bytes(packed)
    file.unlink()
    few = core(expected, 3)
    assert few != expected and sum(map(len, few.values())) > 9
    assert importing("auto", "--k_core", 3, "--overwrite") == few

    if name in AGAIN:
        before, importing.out = importing.out, importing.folder / "again"
        importing("table", "--k_core", 3, source=before / "interactions.parquet")
        assert (importing.out / "users.tsv").read_bytes() == (before / "users.tsv").read_bytes()


@each_kind
def test_a_file_that_is_cut_or_empty_is_named_and_leaves_nothing(importing, name):
    kind, raw = KINDS[name], importing.folder / "raw"
    kind.write(raw, EVENTS)
    file = raw / kind.file
    whole = file.read_bytes()
    for other in kind.items():
        content = (raw / other).read_bytes()
        (raw / other).write_bytes(b"")
        assert f"{raw / other}: " in importing.fails(name)
        (raw / other).write_bytes(content)
    file.write_bytes(b"")
    assert f"{file}: is empty; fetch it again" in importing.fails(name)
    file.unlink()
    packed = file.with_name(f"{file.name}.gz")
    for content in (gzip.compress(whole)[:-9], gzip.compress(whole[:9])[:12] + zlib.compress(whole)[9:]):
        packed.write_bytes(content)
        assert f"{packed}: " in importing.fails(name)
    packed.unlink()
    assert ("holds no files" if name == "table" else "no file fits") in importing.fails(name)


def test_folders_of_a_dataset_are_looked_into(importing):
    KINDS["movielens"].write(importing.folder / "raw" / "ml-100k", EVENTS)
    assert importing("auto") == KINDS["movielens"].expected(EVENTS)
    KINDS["recbole"].write(importing.folder / "raw" / "other", EVENTS)
    with pytest.raises(TransrecError, match=r"may be of several formats: movielens, for .*; recbole, for"):
        importing("auto", "--overwrite")
    with pytest.raises(TransrecError, match="no file fits"):
        load_dataset(importing.folder / "raw", 5, 3)


def test_a_line_of_pairs_that_is_none(importing):
    importing.write("KU_pair.csv", "u1,v1\ru2,v2\n")
    assert "KU_pair.csv, line 1: new-line character" in importing.fails("ninerec")
