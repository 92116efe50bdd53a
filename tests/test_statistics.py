"""The numbers of check_dataset.py, against slow and obvious Python."""

import json
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from itertools import accumulate
from math import ceil
from pathlib import Path
from shutil import copyfile

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from transrec.data.catalog import Catalog
from transrec.data.dataset import Dataset, load_dataset
from transrec.data.images.build import build_store
from transrec.data.images.gallery import open_gallery
from transrec.data.interactions import Interactions, Sequences, leave_one_out
from transrec.data.statistics import (
    Activity,
    activity_as_kept,
    activity_as_read,
    cold_items,
    cold_targets,
    early_targets,
    repeated_targets,
    repeats,
)

pytestmark = pytest.mark.usefixtures("quick_starts")

ITEMS = 9
MINIMUM = 3


def dataset_of(histories: list[list[int]], max_seq_len: int) -> Dataset:
    stops = np.array(list(accumulate(map(len, histories))))
    starts = stops - [len(history) for history in histories]
    values = np.array([item for history in histories for item in history], dtype=np.int32)
    users = [f"u{number}" for number in range(len(histories))]
    interactions = Interactions(Path("users.tsv"), users, Sequences(values, starts, stops))
    catalog = Catalog(Path("items.tsv"), [f"i{number}" for number in range(ITEMS)], [""] * ITEMS, ["item_id"], 1)
    return Dataset("random", catalog, interactions, leave_one_out(interactions, max_seq_len, MINIMUM))


def check_activity(activity: Activity, histories: list[list[int]], items: list[int]) -> None:
    touched = Counter(item for history in histories for item in history)
    assert activity.users == len(histories)
    assert activity.items == len(items)
    assert activity.interactions == sum(touched.values())
    assert activity.untouched == sum(item not in touched for item in items)
    assert activity.density == sum(touched.values()) / (len(histories) * len(items))
    assert activity.counts.tolist() == [touched[item] for item in items]
    assert activity.lengths.tolist() == [len(history) for history in histories]
    for percent in (1, 10, 50, 100):
        top = sorted((touched[item] for item in items), reverse=True)[: ceil(percent * len(items) / 100)]
        assert activity.top_share(percent / 100) == sum(top) / sum(touched.values())


@settings(max_examples=300, deadline=None)
@given(
    histories=st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=12), min_size=1, max_size=12),
    max_seq_len=st.integers(1, 6),
)
def test_statistics_are_those_of_slow_python(histories, max_seq_len):
    assume(any(len(history) >= MINIMUM for history in histories))
    dataset = dataset_of(histories, max_seq_len)
    check_activity(activity_as_read(dataset), histories, list(range(ITEMS)))

    kept = [history[-(max_seq_len + 3) :] for history in histories if len(history) >= MINIMUM]
    items = sorted({item for history in kept for item in history})
    check_activity(activity_as_kept(dataset.split), kept, items)

    trained = {item for history in kept for item in history[:-2]}
    assert cold_items(dataset.split).tolist() == [n for n, item in enumerate(items, start=1) if item not in trained]
    for part, target in (("validation", -2), ("test", -1)):
        repeating = [user for user, history in enumerate(kept) if history[target] in history[:target]]
        assert repeated_targets(dataset.split, part).tolist() == repeating
        untrained = [user for user, history in enumerate(kept) if history[target] not in trained]
        assert cold_targets(dataset.split, part).tolist() == untrained
        assert early_targets(dataset.split, part) is None
    found = repeats(dataset.interactions.sequences)
    assert found.interactions == sum(len(history) - len(set(history)) for history in histories)
    pairs = [(user, item, history.count(item)) for user, history in enumerate(histories) for item in {*history}]
    assert sorted(found.most(len(pairs))) == sorted(pair for pair in pairs if pair[2] > 1)
    assert [count for *_, count in found.most(2)] == sorted((pair[2] for pair in pairs if pair[2] > 1), reverse=True)[
        :2
    ]


@pytest.mark.parametrize("items", [10, 30, 70, 1000])
def test_the_top_tenth_of_the_items_is_exactly_that(items):
    assert Activity(np.ones(items, dtype=int), np.array([items])).top_share(0.1) == 0.1


def test_repeated_targets_of_scientific(scientific):
    dataset = load_dataset(scientific, max_seq_len=10, min_seq_len=5)
    assert activity_as_read(dataset).interactions == 85_211
    kept = activity_as_kept(dataset.split)
    assert (kept.users, kept.items, kept.interactions) == (12_076, 20_314, 81_711)
    assert len(repeated_targets(dataset.split, "validation")) == 723
    assert len(repeated_targets(dataset.split, "test")) == 621


def check(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, REPOSITORY / "scripts" / "check_dataset.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)


def cells(printed: str) -> dict[str, list[str]]:
    """Return the table's cells by the first cell of each row."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    return {name: values for name, *values in rows}


def test_check_dataset_prints_a_table_and_writes_a_plot(domain, tmp_path):
    before = sorted(domain.rglob("*"))
    done = check(domain, "--max_seq_len", "6", "--images", domain / "images", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    dataset = load_dataset(domain, 6, 5)
    read, kept = activity_as_read(dataset), activity_as_kept(dataset.split)
    shown = cells(done.stdout)
    assert shown["small"] == ["read", "kept"]
    assert shown["users"] == ["60", str(kept.users)]
    assert shown["items"] == ["150", str(kept.items)]
    assert shown["interactions"] == [str(read.interactions), str(kept.interactions)]
    assert shown["sequence length: longest"] == ["9", "9"]
    assert shown["items that nobody touches"] == [str(read.untouched), ""]
    assert shown["items without a title"] == shown["items without an image"] == ["0", "0"]
    assert shown["test targets that repeat"][1].startswith(f"{len(repeated_targets(dataset.split, 'test'))} (")
    assert [path.name for path in tmp_path.iterdir()] == ["small-check.png"]
    assert (tmp_path / "small-check.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(domain.rglob("*")) == before, "nothing is written into the dataset"


def test_check_dataset_counts_what_lacks_a_title_or_an_image(domain, tmp_path):
    ids = load_dataset(domain, 6, 5).catalog.ids
    (tmp_path / "users.tsv").write_bytes((domain / "users.tsv").read_bytes())
    (tmp_path / "items.tsv").write_text("".join(f"{item}\t{'' if item in ids[:3] else 'x'}\n" for item in ids))
    (tmp_path / "images").mkdir()
    for item in ids[:140]:
        (tmp_path / "images" / f"{item}.jpg").touch()
    done = check(tmp_path, "--images", tmp_path / "images", "--out", tmp_path)
    shown = cells(done.stdout)
    first, second = done.stderr.splitlines()
    assert first.startswith("warning: ") and "3 of 150 items have no title" in first
    assert second.startswith("warning: ") and "only 2 different titles for 150 items" in second
    assert shown["items without a title"][0] == "3"
    assert shown["items without an image"][0] == "10"
    assert shown["items without an image that can be opened"][0] == "150"
    assert f"pictures that cannot be decoded: 140, {ids[0]} (unreadable: " in done.stdout
    few = check(tmp_path, "--images", tmp_path / "images", "--out", tmp_path, "--pictures", "7").stdout
    assert cells(few)["items without an image that can be opened"][0] == "17"


def test_a_store_lacks_the_images_that_it_was_made_without(domain, tmp_path):
    ids = load_dataset(domain, 6, 5).catalog.ids
    assert open_gallery(tmp_path, None, ids) is None
    some = tmp_path / "items.tsv"
    some.write_text("".join(f"{item}\n" for item in ids[:100]))
    images = tmp_path / "images"
    images.mkdir()
    for item in ids[:90]:
        copyfile(domain / "images" / f"{item}.png", images / f"{item}.png")
    build_store(some, images, tmp_path / "small.lmdb", size=8, allow_missing=True)
    # Grey placeholders do not count as images either.
    assert open_gallery(tmp_path, None, ids).missing == set(ids[90:])
    gallery = open_gallery(domain, str(tmp_path / "small.lmdb"), ids)
    assert gallery.missing == set(ids[90:])
    assert gallery.broken(ids) == {}
    assert gallery.picture(ids[0]).size == (8, 8)


def test_check_dataset_names_the_line_of_a_mistake(domain, tmp_path):
    (tmp_path / "items.tsv").write_bytes((domain / "items.tsv").read_bytes())
    lines = (domain / "users.tsv").read_text().splitlines()
    lines[6] += " nothing"
    (tmp_path / "users.tsv").write_text("\n".join(lines))
    done = check(tmp_path, "--out", tmp_path)
    assert done.returncode == 2
    assert "users.tsv, line 7:" in done.stderr and "'nothing'" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--min_seq_len", "2"], "--min_seq_len 2: must be at least 3"),
        (["--min_seq_len", "99"], "lower --min_seq_len"),
        (["--pictures", "-1"], "--pictures -1: must be 0 or more"),
        (["--images", "nowhere"], "nowhere: no such file or folder; check --images"),
    ],
)
def test_check_dataset_tells_of_flags_that_cannot_be(domain, tmp_path, flags, message):
    done = check(domain, *flags, "--out", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


HOSTILE = "<script>alert(1)</script> \x1b[31m\u202e & \"'> http://evil.example/"
ITS_OWN = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "br", "div", "table", "tr", "th", "td"),
    *("figure", "svg", "defs", "g", "path", "use", "text", "tspan", "clippath", "rect", "ol", "li", "span", "img"),
}
EMPTY = {"meta", "br", "img", "input"}


class Page(HTMLParser):
    """The tags, addresses and text of a page; checks that every opened tag is closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.addresses, self.text, self.open, self.ids = Counter(), [], "", [], Counter()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.ids.update(value for name, value in attrs if name == "id")
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_page_of_hostile_titles_holds_them_as_text(domain, tmp_path):
    pytest.importorskip("pyarrow")
    from pyarrow import parquet, table

    folder = tmp_path / "<b>set&amp;"
    (folder / "images").mkdir(parents=True)
    dataset = load_dataset(domain, 6, 5)
    ids, sequences = dataset.catalog.ids, dataset.interactions.sequences
    (folder / "items.tsv").write_text("".join(f"{item}\t{HOSTILE} {number // 2}\n" for number, item in enumerate(ids)))
    (folder / "users.tsv").write_bytes((domain / "users.tsv").read_bytes())
    owners = sequences.owners()
    columns = {
        "user_id": [dataset.interactions.users[owner] for owner in owners],
        "item_id": [ids[row] for row in sequences.flat()],
        "time": [1_500_000_000 + 86_400 * place for place in range(len(owners))],
    }
    parquet.write_table(table(columns), folder / "interactions.parquet")
    card = {"format": HOSTILE, "notes": [HOSTILE, {"a": [[[[[[1]]]]]]}], "counts": {"users": 1234}}
    (folder / "dataset.json").write_text(json.dumps({"import": card}))
    for item in ids[1:]:
        copyfile(domain / "images" / f"{item}.png", folder / "images" / f"{item}.png")
    (folder / "images" / f"{ids[0]}.png").write_bytes((domain / "images" / f"{ids[0]}.png").read_bytes()[:60])

    out = tmp_path / "new" / "page.html"
    done = check(folder, "--max_seq_len", "6", "--images", folder / "images", "--out", tmp_path, "--html", out)
    assert done.returncode == 0, done.stderr
    assert f"pictures that cannot be decoded: 1, {ids[0]} (" in done.stdout and f"page: {out}" in done.stdout
    source = out.read_text(encoding="utf-8")
    page = Page(source)
    assert page.tags.keys() <= ITS_OWN
    assert max(page.ids.values()) == 1 and page.tags["svg"] == 3 and 0 < page.tags["img"] <= 48
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in page.addresses)
    assert "url(http" not in source and "@import" not in source and "\x1b" not in source and "\u202e" not in source
    assert "<script>alert(1)</script> \\x1b[31m\\u202e & \"'> http://evil.example/ 0" in page.text
    assert "Titles that several items have, capitals aside: 75" in page.text and "1,234" in page.text
    for part in ("Broken pictures", "Cold items", "Longest titles", "Example users", "Data card", "test 2017-"):
        assert part in page.text
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


def test_a_page_of_items_without_texts_and_times_needs_neither(domain, tmp_path):
    (tmp_path / "users.tsv").write_bytes((domain / "users.tsv").read_bytes())
    ids = load_dataset(domain, 6, 5).catalog.ids
    (tmp_path / "items.tsv").write_text("".join(f"{item}\n" for item in ids))
    done = check(tmp_path, "--out", tmp_path, "--html", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.tags["svg"] == 2 and not page.tags["img"]
    assert "Longest titles" not in page.text and f"item {ids[0][:2]}" in page.text
