"""Splits by time, by shares and as given, against slow Python; datasets in Parquet."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from transrec.data.dataset import load_dataset
from transrec.data.interactions import Interactions, Sequences
from transrec.data.splits import Splitting
from transrec.data.statistics import early_targets
from transrec.errors import TransrecError

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
import pyarrow  # noqa: E402

ITEMS = 12
histories = st.lists(st.lists(st.tuples(st.integers(0, 99), st.integers(0, ITEMS - 1)), max_size=9), max_size=9)


def interactions_of(users: list[list[tuple[int, int]]], parts: list[list[int]] | None = None) -> Interactions:
    stops = np.cumsum([len(user) for user in users])
    flat = [one for user in users for one in user]
    times, values = (np.array([one[place] for one in flat], kind) for place, kind in ((0, np.int64), (1, np.int32)))
    sequences = Sequences(values, stops - [len(user) for user in users], stops)
    part_of_value = None if parts is None else np.array([part for user in parts for part in user], np.int8)
    return Interactions(Path("users.tsv"), [f"u{row}" for row in range(len(users))], sequences, times, part_of_value)


def ranked(split, part: str) -> list[tuple[int, list[int], list[int], int]]:
    """Return user row, context, history and target of each target, with items by catalogue row."""
    rows = [-1, *split.item_rows.tolist()]
    users, _ = split.targets(part)
    cases, history = getattr(split, part), split.history(part)
    assert len(users) == len(cases) == len(history)
    return [
        (
            int(split.user_rows[user]),
            [rows[item] for item in cases[case][:-1]],
            [rows[item] for item in history[case]],
            rows[cases[case][-1]],
        )
        for case, user in enumerate(users)
    ]


def expected(kept: dict[int, tuple[list, list, list]], part: int, length: int) -> list:
    """Return the same as `ranked` from lists of items by part."""
    cases = []
    for user, parts in kept.items():
        before = [*parts[0][-(length + 1) :], *(parts[1] if part == 2 else [])]
        for target in parts[part]:
            if before:
                cases.append((user, before[-length:], list(before), target))
            before.append(target)
    return cases


def check(split, kept: dict[int, tuple[list, list, list]], length: int) -> None:
    rows = [-1, *split.item_rows.tolist()]
    trained = [[rows[item] for item in split.train[user]] for user in range(split.user_count)]
    assert trained == [parts[0][-(length + 1) :] for parts in kept.values()]
    for number, part in enumerate(("validation", "test"), start=1):
        assert ranked(split, part) == expected(kept, number, length)


def try_split(splitting: Splitting, interactions: Interactions, length: int):
    try:
        return splitting.split(interactions, ITEMS, length, 3)
    except TransrecError as error:
        assert any(words in str(error) for words in ("no target", "to train on", "min_seq_len", "would start")), error
        assume(False)


@settings(max_examples=60, deadline=None)
@given(histories, st.integers(1, 5), st.sampled_from([("0.8", "0.5"), ("60", "30"), ("0.9", "20")]))
def test_a_time_split_never_lets_a_later_interaction_into_training(users, length, places):
    users = [sorted(user, key=lambda one: one[0]) for user in users]
    splitting = Splitting("time", *places)
    assume(users)
    split = try_split(splitting, interactions_of(users), length)
    kept_users = {row: user for row, user in enumerate(users) if len(user) >= 3}
    every = sorted(at for user in kept_users.values() for at, _ in user)
    test, validation = (
        every[int(float(place) * len(every))] if "." in place else int(place) for place in (places[0], places[1])
    )

    def parts(user):
        bounds = [(-1, validation), (validation, test), (test, 100)]
        return tuple([item for at, item in user if first <= at < last] for first, last in bounds)

    check(split, {row: parts(user) for row, user in kept_users.items()}, length)
    train = split.train
    latest = Sequences(split.times, train.starts, train.stops).flat().max()
    assert all(latest < split.times[split.targets(part)[1]].min() for part in ("validation", "test"))


@settings(max_examples=40, deadline=None)
@given(histories, st.integers(1, 5))
def test_shares_of_each_user(users, length):
    assume(users)
    split = try_split(Splitting("ratio", "0.7", "0.4"), interactions_of(users), length)

    def parts(user):
        items = [item for _, item in user]
        test = min(max(round(0.7 * len(items)), 1), len(items) - 1)
        validation = min(max(round(0.4 * len(items)), 1), test)
        return items[:validation], items[validation:test], items[test:]

    check(split, {row: parts(user) for row, user in enumerate(users) if len(user) >= 3}, length)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(0, ITEMS - 1)), max_size=9), max_size=9))
def test_a_given_split_in_whatever_order(users):
    assume(users and any(part == 1 for user in users if len(user) >= 3 for part, _ in user))
    parts = [[part for part, _ in user] for user in users]
    split = try_split(Splitting("given"), interactions_of(users, parts), 4)
    kept = {
        row: tuple([item for item_part, item in user if item_part == part] for part in range(3))
        for row, user in enumerate(users)
        if len(user) >= 3
    }
    if any(len(kept[row][1]) for row in kept):
        check(split, kept, 4)


USERS = [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0, 5], [1, 5, 3, 0]]
TIMES = [[10, 20, 30, 40, 50], [15, 25, 25, 45, 55, 60], [5, 6, 7, 8]]


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "items.tsv").write_text("".join(f"i{item}\ttitle {item}\n" for item in range(7)))
    lines = (f"u{row}\t{' '.join(f'i{item}' for item in user)}\n" for row, user in enumerate(USERS))
    (tmp_path / "users.tsv").write_text("".join(lines))
    write_rows(tmp_path / "interactions.parquet")
    return tmp_path


def write_rows(path: Path, order=None, **changed) -> None:
    rows = [(f"u{u}", f"i{i}", at) for u, user in enumerate(USERS) for i, at in zip(user, TIMES[u], strict=True)]
    columns = dict(zip(("user_id", "item_id", "time"), map(list, zip(*rows, strict=True)), strict=True)) | changed
    chosen = {name: [column[row] for row in order or range(15)] for name, column in columns.items() if column}
    parquet.write_table(pyarrow.table(chosen), path, row_group_size=4)


def test_parquet_alone_is_read_as_users_tsv_beside_it(folder):
    by_time = Splitting("time", "45", "30")
    beside = load_dataset(folder, 3, 4, splitting=by_time)
    assert "validation from 1970-01-01 00:00:30" in beside.summary
    files = {Path(path).name for path in beside.hashes()}
    assert files == {"items.tsv", "users.tsv", "interactions.parquet"}
    assert {Path(path).name for path in load_dataset(folder, 3, 4).hashes()} == {"items.tsv", "users.tsv"}
    (folder / "users.tsv").unlink()
    (folder / "items.tsv").unlink()
    titles = {"item_id": [f"i{item}" for item in range(7)], "Title": [f"title {item}" for item in range(7)]}
    parquet.write_table(pyarrow.table(titles | {"year": [1990, None] * 3 + [1991]}), folder / "items.parquet")
    # At equal times, the order is that of the rows.
    shuffled = [int(row) for row in np.random.default_rng(0).permutation(15)]
    shuffled.sort(key=lambda row: row == 7)
    for order in (None, shuffled):
        write_rows(folder / "interactions.parquet", order)
        alone = load_dataset(folder, 3, 4, splitting=by_time)
        assert (alone.catalog.ids, alone.catalog.texts) == (beside.catalog.ids, beside.catalog.texts)
        if order is None:
            assert ranked(alone.split, "test") == ranked(beside.split, "test")
        rows = {user: row for row, user in enumerate(alone.interactions.users)}
        assert [alone.interactions.sequences[rows[f"u{row}"]].tolist() for row in range(3)] == USERS
    assert alone.catalog.with_text("{title} ({year})").texts[:2] == ["title 0 (1990)", "title 1 ()"]


def test_times_that_only_order_rows_are_not_kept(folder):
    (folder / "users.tsv").unlink()
    shuffled = [int(row) for row in np.random.default_rng(0).permutation(15)]
    shuffled.sort(key=lambda row: row == 7)
    for order in (None, shuffled):
        write_rows(folder / "interactions.parquet", order)
        read = load_dataset(folder, 3, 4).interactions
        sequences = {user: read.sequences[row].tolist() for row, user in enumerate(read.users)}
        assert sequences == {f"u{row}": user for row, user in enumerate(USERS)} and read.times is None
        assert load_dataset(folder, 3, 4, with_times=True).split.times is not None


def test_a_split_in_a_column_and_in_files_are_the_same(folder):
    names = ["train", "train", "valid", "test", "test"] + ["train"] * 4 + ["valid", "test"] + ["train"] * 3 + ["test"]
    write_rows(folder / "interactions.parquet", split=names)
    column = load_dataset(folder, 3, 4, splitting=Splitting("given", catalogue="all"))
    assert column.split.item_count == 7 and "split as given by its publisher: 2 validation and 4 test" in column.summary
    assert [user for user, *_ in ranked(column.split, "test")] == [0, 0, 1, 2]
    (folder / "interactions.parquet").unlink()
    flat = [(u, item) for u, user in enumerate(USERS) for item in user]
    for part in ("train", "valid", "test"):
        own = [(u, item) for (u, item), name in zip(flat, names, strict=True) if name == part]
        lines = [f"u{u}\t" + " ".join(f"i{item}" for owner, item in own if owner == u) for u in dict(own)]
        (folder / f"{part}.tsv").write_text("\n".join(lines))
    (folder / "dataset.json").write_text('{"users": {"train": "train.tsv", "valid": "valid.tsv", "test": "test.tsv"}}')
    files = load_dataset(folder, 3, 4, splitting=Splitting("given", catalogue="all"))
    for part in ("validation", "test"):
        assert ranked(files.split, part) == ranked(column.split, part)
    assert {Path(path).name for path in files.hashes()} == {"items.tsv", "train.tsv", "valid.tsv", "test.tsv"}
    assert ranked(load_dataset(folder, 3, 4).split, "test")[0][3] == 4


@pytest.mark.parametrize(
    "change, message",
    [
        ({"time": None}, "interactions.parquet: has no column 'time', which --split time reads"),
        ({"time": [None] * 15}, "row 1: has no time"),
        ({"time": [1.5] * 15}, "column 'time' is of type double; save whole seconds"),
        ({"item_id": ["i0"] * 14 + ["i9"]}, "row 15: has item 'i9', which the items file does not list"),
        ({"user_id": ["u0"] * 15}, "does not hold the interactions of users.tsv in their order"),
        ({"time": [9, 8] + [10] * 13}, "does not hold the interactions of users.tsv in their order"),
        (None, "users.tsv: has no times, which --split time needs; put an interactions.parquet"),
    ],
)
def test_what_a_time_split_cannot_be_made_of(folder, change, message):
    path = folder / "interactions.parquet"
    path.unlink() if change is None else write_rows(path, **change)
    with pytest.raises(TransrecError, match=message.replace("(", r"\(")):
        load_dataset(folder, 3, 4, splitting=Splitting("time"))


@pytest.mark.parametrize(
    "given, message",
    [
        (("loo", "0.9"), "--split_at 0.9: is read by --split time and --split ratio only"),
        (("time", "0.5", "0.5"), "--validate_at 0.5: must come before --split_at 0.5"),
        (("time", "2018-13-01"), "--split_at 2018-13-01: must be a share above 0 and below 1, such as 0.9, or a date"),
        (("ratio", "2018-01-01"), "--split_at 2018-01-01: must be a share above 0 and below 1, such as 0.9$"),
        (("ratio", "nan"), "--split_at nan: must be a share"),
    ],
)
def test_places_that_are_none(given, message):
    with pytest.raises(TransrecError, match=message):
        Splitting(*given)


def test_a_damaged_file_and_one_that_pyarrow_would_be_needed_for(folder, monkeypatch):
    path = folder / "interactions.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(TransrecError, match=r"interactions.parquet: not a Parquet file, or damaged \("):
        load_dataset(folder, 3, 4, splitting=Splitting("time"))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert load_dataset(folder, 3, 4).split.user_count == 3
    with pytest.raises(TransrecError, match=r"reading Parquet needs pyarrow; pip install 'transrec\[import\]'"):
        load_dataset(folder, 3, 4, splitting=Splitting("time"))


def test_targets_before_the_end_of_training_are_those_of_leave_one_out_alone(folder):
    # Training lasts until 45, by the second user; the targets of the others are at 40, 50 and 7, 8.
    left = load_dataset(folder, 3, 4, with_times=True).split
    assert early_targets(left, "validation").tolist() == [0, 2] and early_targets(left, "test").tolist() == [2]
    in_time = load_dataset(folder, 3, 4, splitting=Splitting("time", "45", "30")).split
    assert all(not len(early_targets(in_time, part)) for part in ("validation", "test"))
