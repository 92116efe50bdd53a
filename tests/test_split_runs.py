"""Complete runs over splits other than leave-one-out: each test interaction is ranked once, however a run goes."""

from pathlib import Path

import numpy as np
import pytest
from conftest import run
from test_training import finish, numbers, run_to_the_first_save, start

from transrec.data.dataset import load_dataset
from transrec.finished import load_run
from transrec.reports.tables import read_result
from transrec.studies import Axis, Grid, main
from transrec.training.ranks import ranks_file, read_ranks

SIZES = ["--embedding_dim", "16", "--max_seq_len", "6", "--batch_size", "8", "--dropout", "0"]
AT = {"time": 0.8, "ratio": 0.7}


@pytest.fixture
def timed(domain, tmp_path) -> Path:
    """The small dataset with times: users start one after another, and then continue in parallel."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    folder = tmp_path / "timed"
    folder.mkdir()
    for name in ("users.tsv", "items.tsv"):
        (folder / name).write_bytes((domain / name).read_bytes())
    whole = load_dataset(domain, 6, 5)
    users, sequences = whole.interactions.users, whole.interactions.sequences
    owners = sequences.owners()
    places = np.arange(len(owners)) - sequences.starts[owners]
    columns = {
        "user_id": [users[owner] for owner in owners],
        "item_id": [whole.catalog.ids[row] for row in sequences.flat()],
        "time": 20 * owners + 100 * places,
    }
    parquet.write_table(pyarrow.table(columns), folder / "interactions.parquet")
    return folder


def expected(folder: Path, kind: str) -> list[tuple[int, int]]:
    """Return user and item of each test interaction, as rows of the two files in order, by slow Python."""
    read = load_dataset(folder, 6, 5, with_times=True).interactions
    times = np.split(read.times, read.sequences.stops[:-1])
    users = {user: [*zip(times[user], read.sequences[user], strict=True)] for user in range(len(read.users))}
    users = {user: events for user, events in users.items() if len(events) >= 5}
    every = sorted(time for events in users.values() for time, _ in events)
    cut = every[int(AT[kind] * len(every))]
    starts = {
        user: sum(time < cut for time, _ in events) if kind == "time" else round(AT[kind] * len(events))
        for user, events in users.items()
    }
    return [(user, int(item)) for user, events in users.items() for _, item in events[max(1, starts[user]) :]]


def ranked(folder: Path) -> list[tuple[int, int]]:
    return read_ranks(folder, "test")[["user", "item"]].tolist()


@pytest.mark.parametrize("kind", AT)
def test_runs_rank_each_test_interaction_once(timed, tmp_path, monkeypatch, kind):
    places = ["--split", kind, "--validate_at", "0.6", "--split_at", str(AT[kind])]
    given = ["--dataset", str(timed), *SIZES, *places, "--item_tower", "id", "--epochs", "2"]
    wanted = expected(timed, kind)
    assert len(wanted) > len({user for user, _ in wanted}), "some users have several"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = run([*given, "--output", str(whole)])
    assert ranked(whole) == wanted
    run_to_the_first_save(monkeypatch, [*given, "--output", str(parts)])
    run(["--resume", str(parts)])
    assert numbers(parts) == numbers(whole)
    assert ranks_file(parts, "test").read_bytes() == ranks_file(whole, "test").read_bytes()
    loaded = load_run(whole)
    assert {part: loaded.evaluate(part) for part in ("validation", "test")} == {
        part: pytest.approx(result[part]) for part in ("validation", "test")
    }


@pytest.mark.usefixtures("quick_starts")
def test_a_study_passes_a_split_on(timed, tmp_path, backbones):
    words = ["--target", str(timed), "--out", str(tmp_path / "out"), "--text_encoder", str(backbones["bert"])]
    words += [*SIZES, "--title_tokens", "10", "--epochs", "1", "--method", "frozen", "--seeds", "0"]
    words += ["--split", "time", "--split_at", "0.8", "--validate_at", "0.6"]
    with pytest.raises(SystemExit) as end:
        main("", Grid((Axis("method", ("frozen",)),)), words)
    assert end.value.code == 0
    (folder,) = (tmp_path / "out").glob("runs/*/result.json")
    assert ranked(folder.parent) == expected(timed, "time")
    assert "HR@10" in read_result(folder.parent)["test"]


@pytest.mark.long
def test_two_processes_rank_each_test_interaction_once(timed, tmp_path):
    given = ["--dataset", str(timed), *SIZES, "--split", "time", "--validate_at", "0.6", "--split_at", "0.8"]
    one, two = tmp_path / "one", tmp_path / "two"
    result = run([*given, "--item_tower", "id", "--epochs", "1", "--lr", "1e-3", "--output", str(one)], item_tower="id")
    more = ["--objective", result["objective"], "--nproc", "2"] if "objective" in result else ["--nproc", "2"]
    finish(start("id_baseline.py", [*given, "--epochs", "1", "--lr", "1e-3", "--output", str(two), *more]))
    assert ranked(two) == ranked(one) == expected(timed, "time")
    of_one, of_two = (numbers(folder) for folder in (one, two))
    assert of_two["epochs"][0]["train_loss"] == pytest.approx(of_one["epochs"][0]["train_loss"], rel=1e-4)
