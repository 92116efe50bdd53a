"""Scripts and tools as users run them."""

import subprocess
import sys

import pytest
from conftest import REPOSITORY

from transrec.data.dataset import load_dataset
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
    # Fewer users are a subset of more.
    split_users(domain, tmp_path / "part", share=0.5)
    part = set(load_dataset(tmp_path / "part" / "source", 6, 5).interactions.users)
    assert part < users[0]


def test_a_table_is_markdown():
    table = markdown(["method", "HR@10"], [["full", "0.1"], ["houlsby", "0.25"]])
    assert table.splitlines() == [
        "| method  | HR@10 |",
        "| :------ | ----: |",
        "| full    |   0.1 |",
        "| houlsby |  0.25 |",
    ]
