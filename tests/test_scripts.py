"""Scripts and tools as users run them."""

import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from transrec.data.dataset import load_dataset
from transrec.errors import TransrecError
from transrec.reports.tables import markdown

pytestmark = pytest.mark.usefixtures("quick_starts")

METHOD_SCRIPTS = sorted(path for stage in ("Pretraining", "Downstream") for path in (REPOSITORY / stage).rglob("*.py"))
sys.path.insert(0, str(REPOSITORY / "scripts"))


def shell(*command) -> str:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", METHOD_SCRIPTS, ids=lambda path: f"{path.parts[-4]}-{path.stem}")
def test_a_method_script_is_a_page(script):
    text = script.read_text()
    assert len(text.splitlines()) <= 40
    assert f"python {script.name}" in text, "opens with the command that runs it"


def test_help_groups_the_flags_and_shows_each_default():
    text = shell(REPOSITORY / "Downstream/Text/script/adapter_houlsby.py", "--help-all")
    groups = ("data:", "model:", "training:", "evaluation:", "run:", "method houlsby:", "user encoder sasrec:")
    assert [text.count(f"\n{group}\n") for group in groups] == [1] * len(groups)
    flat = " ".join(text.split())
    for flag, default in (
        ("--adapter_lr ADAPTER_LR", "0.00015"),
        ("--batch_size BATCH_SIZE", "32"),
        ("--max_seq_len MAX_SEQ_LEN", "20"),
    ):
        after = flat[flat.rindex(flag) :]
        assert f"(default: {default})" in after[: after.index("(default") + 30]


def test_split_users_makes_two_datasets(domain, tmp_path):
    from split_users import split_users

    counts = split_users(domain, tmp_path / "halves", share=1.0)
    halves = [load_dataset(tmp_path / "halves" / half, 6, 5) for half in ("source", "target")]
    users = [set(half.interactions.users) for half in halves]
    assert users[0] | users[1] == set(load_dataset(domain, 6, 5).interactions.users)
    assert not users[0] & users[1]
    assert [len(u) for u in users] == list(counts.values()) and min(counts.values()) > 15
    # Smaller samples of users are subsets of larger ones.
    split_users(domain, tmp_path / "part", share=0.5)
    part = set(load_dataset(tmp_path / "part" / "source", 6, 5).interactions.users)
    assert part < users[0]


def test_split_users_of_several_users_files_is_refused(domain, tmp_path):
    from split_users import split_users

    copy = tmp_path / "split"
    shutil.copytree(domain, copy)
    (copy / "dataset.json").write_text('{"users": {"train": "train.tsv", "test": "test.tsv"}}')
    with pytest.raises(TransrecError, match="names several files of users, and this script splits one"):
        split_users(copy, tmp_path / "halves", share=1.0)


def test_split_users_leaves_nothing_of_an_earlier_split(domain, tmp_path):
    from split_users import split_users

    stale = tmp_path / "halves" / "source" / "interactions.parquet"
    stale.parent.mkdir(parents=True)
    stale.touch()
    (stale.parent / "items.parquet").touch()
    split_users(domain, tmp_path / "halves", share=1.0)
    assert sorted(path.name for path in stale.parent.iterdir()) == ["items.tsv", "users.tsv"]
    before = (stale.parent / "users.tsv").read_bytes()
    with pytest.raises(TransrecError, match="its source is the dataset itself"):
        split_users(stale.parent, tmp_path / "halves", share=1.0)
    assert (stale.parent / "users.tsv").read_bytes() == before


def test_split_users_keeps_the_rows_of_its_users(domain, tmp_path):
    pytest.importorskip("pyarrow")
    from pyarrow import parquet, table
    from split_users import split_users

    whole = load_dataset(domain, 6, 5).interactions
    owners = whole.sequences.owners()
    ids = load_dataset(domain, 6, 5).catalog.ids
    columns = {
        "user_id": [whole.users[owner] for owner in owners],
        "item_id": [ids[row] for row in whole.sequences.flat()],
        "time": list(range(len(owners))),
        "rating": [float(owner) for owner in owners],
    }
    both, alone = tmp_path / "both", tmp_path / "alone"
    for folder, names in ((both, ("users.tsv", "items.tsv")), (alone, ("items.tsv",))):
        folder.mkdir()
        parquet.write_table(table(columns), folder / "interactions.parquet", row_group_size=50)
        for name in names:
            (folder / name).write_bytes((domain / name).read_bytes())
    counts = split_users(both, tmp_path / "halves", share=0.8)
    assert split_users(alone, tmp_path / "rows", share=0.8) == counts
    for half, count in counts.items():
        # Times are read if there is a row for each interaction of users.tsv, in the same order.
        with_times = load_dataset(tmp_path / "halves" / half, 6, 5, with_times=True).interactions
        assert with_times.times is not None and len(with_times.users) == count > 10
        kept = parquet.read_table(tmp_path / "halves" / half / "interactions.parquet")
        rows = [row for row, user in enumerate(columns["user_id"]) if user in set(with_times.users)]
        assert kept.to_pydict() == {name: [values[row] for row in rows] for name, values in columns.items()}
        assert kept.equals(parquet.read_table(tmp_path / "rows" / half / "interactions.parquet"))
        assert load_dataset(tmp_path / "rows" / half, 6, 5).interactions.users == with_times.users


def test_a_table_is_markdown():
    table = markdown(["method", "HR@10"], [["full", "0.1"], ["houlsby", "0.25"]])
    assert table.splitlines() == [
        "| method  | HR@10 |",
        "| :------ | ----: |",
        "| full    |   0.1 |",
        "| houlsby |  0.25 |",
    ]
