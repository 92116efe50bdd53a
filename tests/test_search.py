"""Searches: spaces, the trials that they make, stopping and continuing, two processes, failures, the best settings.

Tests of the search itself replace training by a script that computes its metrics from the learning rate.
"""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from conftest import REPOSITORY, fitting

from transrec.errors import TransrecError
from transrec.reports.search import search_tables
from transrec.studies import study as studies
from transrec.studies.search import Search, method_grid
from transrec.studies.search_command import main
from transrec.studies.space import Dimension, read_spaces
from transrec.studies.study import Study
from transrec.studies.trials import Outcome, Rules, Trials, open_storage

optuna = pytest.importorskip("optuna", reason="needs Optuna, of the extra search")

# Replaces scripts/train.py: the best learning rate is 1e-3, and each epoch comes closer to the final metric.
STUB = """
import fcntl, json, math, os, sys, time
words = sys.argv[1:]
said = {word[2:]: words[i + 1] for i, word in enumerate(words[:-1]) if word.startswith("--")}
folder = said.get("output") or said["resume"]
os.makedirs(folder + "/checkpoints", exist_ok=True)
held = open(folder + "/.lock", "w")
fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
def write(name, text):
    open(f"{folder}/.{name}.tmp", "w").write(text)
    os.replace(f"{folder}/.{name}.tmp", f"{folder}/{name}")
write("options.json", "{}")
print("trains")
if said["method"] == "bitfit":
    sys.exit("error: out of memory while training; free some")
path = f"{folder}/metrics.jsonl"
lines = [json.loads(line) for line in open(path)] if os.path.exists(path) else []
presets = json.load(open(said["presets"]))[said["method"]][said["item_tower"]] if "presets" in said else {}
best = 1 / (1 + (math.log10(float((presets | said)["lr"])) + 3) ** 2)
for epoch in range(len(lines) + 1, 7):
    time.sleep(float(os.environ.get("SECONDS_OF_AN_EPOCH", 0)))
    scores = {"HR@10": best * (1 - 0.5**epoch), "NDCG@10": 0.1}
    lines.append({"epoch": epoch, **{f"validation {k}": v for k, v in scores.items()}})
    lines[-1] |= {"train_seconds": 30.0, "evaluation_seconds": 6.0}
    write("metrics.jsonl", "".join(json.dumps(line) + "\\n" for line in lines))
numbers = ("trainable_parameters total_parameters epochs_trained checkpoint_bytes seconds_per_epoch wall_seconds "
           "peak_memory_mib peak_host_memory_mib").split()
test = {"test": scores, "popularity": scores} if said.get("test") != "false" else {}
write("result.json", json.dumps({"validation": scores, "phase_seconds": {}, **test, **dict.fromkeys(numbers, 1)}))
"""


@pytest.fixture
def stub(tmp_path, monkeypatch) -> Path:
    """Make runs use the script above."""
    path = tmp_path / "stub.py"
    path.write_text(STUB)
    monkeypatch.setattr(studies, "SCRIPT", path)
    return path


@pytest.fixture
def words(domain, backbones) -> list[str]:
    sizes = ["--embedding_dim", "16", "--max_seq_len", "6", "--title_tokens", "10"]
    return ["--target", str(domain), "--text_encoder", str(backbones["bert"]), *sizes]


@pytest.fixture
def search(words, tmp_path, capsys):
    """Return a function that runs the command in this process; it returns status, output and errors."""

    def call(*more: str, out: str = "out", over: str = "text"):
        with pytest.raises(SystemExit) as left:
            main("", [*fitting(words, over), "--out", str(tmp_path / out), *more])
        return left.value.code, *capsys.readouterr()

    return call


def stored_trials(folder: Path) -> dict[str, list[tuple]]:
    """Return everything that the file of trials holds for each method's trials, except times."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'search.db'}")
    return {
        study.study_name: [
            (trial.state.name, trial.params, trial.value, trial.intermediate_values, trial.user_attrs)
            for trial in study.trials
        ]
        for study in (
            optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)
        )
    }


class Killed(BaseException):
    pass


def objective(params: dict, epoch: int) -> float:
    return (1 - (math.log10(params["lr"]) + 3) ** 2 / 9) * (1 - 0.5**epoch)


def run_trials(trials: Trials) -> None:
    """Work off all trials as a search does, with a formula instead of training."""
    trials.refresh()
    while not trials.is_waiting or not all(trial.state.is_finished() for trial in trials.all):
        trials.extend()
        for trial in trials.all:
            if not trial.state.is_finished():
                epochs = {epoch: objective(trial.params, epoch) for epoch in range(1, 7)}
                if (pruned := trials.pruned_at(trial.number, epochs)) is not None:
                    trials.record(
                        trial.number, Outcome("pruned", {e: value for e, value in epochs.items() if e <= pruned})
                    )
                elif trial.params["blocks"] == 3:
                    trials.record(trial.number, Outcome("failed", reason="too deep"))
                else:
                    trials.record(trial.number, Outcome("complete", epochs, epochs[6]))


SPACE = [Dimension("lr", "1e-5..1e-2:log", (1e-5, 1e-2), True, True), Dimension("blocks", "1..3", (1, 3), True)]


def trials_in(folder: Path, trials: int | None = 11, **rules) -> Trials:
    folder.mkdir(exist_ok=True)
    path = folder / "search.db"
    return Trials(
        open_storage(path), path, "full", SPACE, {"lr": 1e-4, "blocks": 9}, Rules(trials, together=3, **rules)
    )


def test_killed_at_any_step_and_resumed_equals_unbroken(tmp_path, monkeypatch):
    """The search is killed at several writes, before or after each; the budget comes in two parts."""
    whole = trials_in(tmp_path / "whole")
    run_trials(whole)
    (expected,) = stored_trials(tmp_path / "whole").values()
    assert expected[0][1]["lr"] == 1e-4, "what a run would take, where the space has it"
    assert all(1e-5 <= params["lr"] <= 1e-2 and params["blocks"] in (1, 2, 3) for _, params, *_ in expected)
    assert {state for state, *_ in expected[:6]} == {"COMPLETE", "FAIL"}
    assert {state for state, *_ in expected} == {"COMPLETE", "FAIL", "PRUNED"}
    assert whole.best.value == max(value for state, _, value, *_ in expected if state == "COMPLETE")

    fall_at, calls = 0, 0

    def falling(original):
        def write(*given, **named):
            nonlocal calls
            calls += 1
            if calls == fall_at:
                raise Killed
            result = original(*given, **named)
            if calls == -fall_at:
                raise Killed
            return result

        return write

    for owner, name in ((optuna.Study, "add_trial"), (optuna.Study, "tell"), (optuna.trial.Trial, "report")):
        monkeypatch.setattr(owner, name, falling(getattr(owner, name)))
    broken, part = trials_in(tmp_path / "broken"), trials_in(tmp_path / "broken", trials=4)
    for fall_at in (1, -1, 2, -5, 8, -11, 0):
        calls = 0
        with pytest.raises(Killed) if fall_at else nullcontext():
            # Until the smaller budget is spent.
            if fall_at in (1, -1, 2):
                run_trials(part)
            run_trials(broken)
    assert stored_trials(tmp_path / "broken")["full"] == expected


def test_trials_differ_by_seed_and_method(tmp_path):
    path = tmp_path / "search.db"
    storage = open_storage(path)
    drawn = [
        Trials(storage, path, name, SPACE, {}, Rules(seed=seed)).proposed(0, [])["lr"]
        for name, seed in (("full", 0), ("full", 1), ("frozen", 0), ("full", 0))
    ]
    assert len({*drawn}) == 3 and drawn[0] == drawn[3]


@pytest.mark.parametrize("complete", [0, 2])
def test_a_method_whose_trials_all_fail_is_given_up(tmp_path, complete):
    """Even after complete ones, in a budget of hours: trials that fail at once use up nothing of it."""
    trials = trials_in(tmp_path / "failing", trials=None, hours=9.0)
    while not trials.is_waiting:
        trials.extend()
        for trial in trials.all:
            if not trial.state.is_finished():
                outcome = Outcome("failed", reason="no memory")
                trials.record(trial.number, outcome if trial.number >= complete else Outcome("complete", {1: 0.5}, 0.5))
    assert len(trials.all) == 12 and (trials.best is None) == (complete == 0) and trials.importances() == {}


def test_a_file_of_another_search_is_refused(tmp_path):
    signature = {"space": {"lr": "1..2"}, "flag": {}, "content of": {"--target": "aa"}, "rule": {"seed": 0}}
    trials = trials_in(tmp_path / "one")
    trials.check(signature)
    trials.check(signature)
    changed = signature | {"space": {"lr": "1..3"}, "flag": {"epochs": 7}, "content of": {"--target": "bb"}}
    with pytest.raises(TransrecError) as error:
        trials.check(changed)
    assert "search.db: holds another search of full: space lr 1..3 (was 1..2), flag epochs 7 (was nothing), " in str(
        error.value
    )
    assert "content of --target bb (was aa); give another --out" in str(error.value)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "search.db").write_text("something else, long enough to have a header of its own" * 9)
    with pytest.raises(TransrecError, match=r"search\.db: cannot be used as the file of a search's trials \("):
        trials_in(tmp_path / "two")


def test_the_best_settings_are_written_told_and_taken(stub, search, tmp_path):
    """The best settings are written as presets with the command line's other settings, and tested once, over seeds."""
    call = ["--method", "lora:published", "full@id", "bitfit", "--trials", "2", "--workers", "2"]
    call += ["--space", "lora.item_rank=2,4", "--batch_size", "24", "--refit_seeds", "0", "1"]
    masks = {"mask_history": "none"}
    (tmp_path / "mine.json").write_text(json.dumps({"lora": {"text": masks}, "full": {"id": masks}}))
    call += ["--presets", str(tmp_path / "mine.json")]
    status, output, errors = search(*call)
    # A method whose trials all fail is reported, and does not stop the others.
    assert status == 1 and "error: no trial of text-bitfit finished, see above" in errors
    assert "text-bitfit: every trial failed, the last one with: out of memory while training; free some" in output
    out = tmp_path / "out"
    best = json.loads((out / "best.json").read_text())
    trials = stored_trials(out)
    assert [len(method_trials) for method_trials in trials.values()] == [2, 2, 2]
    assert [(state, reason) for state, *_, reason in trials["text-bitfit"]] == [
        ("FAIL", {"reason": "out of memory while training; free some"})
    ] * 2
    params, value = max(((trial[1], trial[2]) for trial in trials["text-lora-published"]), key=lambda pair: pair[1])
    given = {"variant": "published", "batch_size": 24, "embedding_dim": 16} | masks
    assert best["lora"]["text"] == given | params
    assert {*best} == {"lora", "full"} and "item_rank" not in best["full"]["id"]
    for name in ("history.png", "importance.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    header, _, lora, *_ = output[output.rindex("| method") :].splitlines()
    assert "test HR@10" in header and f"{value:.4f}" in lora and "Budget of each method: 2 trials" in output
    # Trials do not rank the test targets, and the final runs use the file of presets.
    results = [json.loads(path.read_text()) for path in out.glob("trials/*/result.json")]
    assert len(results) == 4 and not any("test" in result for result in results)
    assert not any(out.glob("trials/text-lora*/checkpoints")), "nobody needs the weights"
    runs = [line for line in output.splitlines() if line.startswith("$ ") and "--test false" not in line]
    assert len(runs) == 4 and all(f"--presets {out / 'best.json'}" in line for line in runs)
    assert len(list(out.glob("runs/*/result.json"))) == 4
    # After the test targets were ranked, no trial is added.
    call[call.index("2")] = "3"
    status, output, errors = search(*call)
    assert status == 2
    assert "its test targets were ranked after 2 trials, and more trials would choose by the test set" in errors


def test_searches_in_one_folder_share_the_file_of_best_settings(stub, search, tmp_path):
    for number, method in enumerate(["full", "bitfit", "lora"]):
        status, _, errors = search("--method", method, "--trials", "1", "--prune_after", "0")
        assert (status == 0) == (method != "bitfit"), errors
        best = json.loads((tmp_path / "out" / "best.json").read_text())
        assert {*best} == ({"full", "lora"} if number == 2 else {"full"})
    # Without their file, nothing tells what the folders of the trials were run with.
    (tmp_path / "out" / "search.db").unlink()
    status, _, errors = search("--method", "lora", "--trials", "1", "--space", "lr=1e-4..1e-3:log")
    assert status == 2 and "text-lora-0000: a trial of another search, whose search.db is gone; remove" in errors


def test_a_refit_takes_the_best_settings_whatever_else_was_given(stub, search, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"full": {"id": {"batch_size": 24}}}))
    call = ["--method", "full@id", "--trials", "2", "--prune_after", "0", "--protocol", "published"]
    presets = ["--full.presets", str(tmp_path / "mine.json")]
    status, output, errors = search(*call, *presets, "--refit_seeds", "0", over="id")
    assert status == 0, errors
    best = json.loads((tmp_path / "out" / "best.json").read_text())["full"]["id"]
    assert best["batch_size"] == 24 and (best["objective"], best["init"], best["patience_steps"]) == (
        "bce",
        "xavier",
        0,
    )
    (refit,) = (line for line in output.splitlines() if line.startswith("$ ") and "--test false" not in line)
    assert refit.count("--presets") == 1 and f"--presets {tmp_path / 'out' / 'best.json'}" in refit


def test_a_varied_user_encoder_decides_which_flags_a_trial_has(stub, search, tmp_path):
    space = ["--space", "user_encoder=sasrec,gru4rec", "lr=1e-4..1e-2:log"]
    status, output, errors = search("--method", "full@id", "--trials", "6", "--prune_after", "0", *space, over="id")
    assert status == 0, errors
    (trials,) = stored_trials(tmp_path / "out").values()
    assert {trial[0] for trial in trials} == {"COMPLETE"}
    assert {trial[1]["user_encoder"] for trial in trials} == {"sasrec", "gru4rec"}
    runs = [line for line in output.splitlines() if line.startswith("$ ")]
    assert all(("--dropout" in line) == ("--user_encoder sasrec" in line) for line in runs)


def test_a_run_that_fails_beside_an_old_result_is_a_failed_trial(stub, search, tmp_path):
    stub.write_text(STUB + 'sys.exit("error: cannot be resumed" if said["method"] == "full" else 0)\n')
    status, output, _ = search("--method", "full@id", "--trials", "1", over="id")
    assert status == 1 and "every trial failed, the last one with: cannot be resumed" in output


def test_hours_are_a_budget_too(stub, search, tmp_path):
    """A trial takes 0.06 hours; when the hours are spent, no further round is drawn until there are more."""
    call = ["--method", "full@id", "--together", "2", "--prune_after", "0", "--hours"]
    status, output, errors = search(*call, "0.2", over="id")
    assert status == 0, errors
    (first,) = stored_trials(tmp_path / "out").values()
    assert [trial[0] for trial in first] == ["COMPLETE"] * 4
    assert "Budget of each method: 0.2 hours of training and validation" in output


DRIVER = """
import sys
from pathlib import Path
from transrec.studies import study
study.SCRIPT = Path(sys.argv.pop(1))
from transrec.studies.search_command import main
main("")
"""


@pytest.fixture
def start(stub, words, tmp_path, quick_starts):
    """Return a function that starts the command in a separate process."""
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)

    def call(out: Path, *more: str) -> subprocess.Popen:
        command = [sys.executable, str(driver), str(stub), *fitting(words, "id"), "--out", str(out), *more]
        environment = os.environ | {"SECONDS_OF_AN_EPOCH": "0.2", "PYTHONPATH": str(REPOSITORY)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return call


@pytest.mark.long
def test_two_processes_share_a_search_until_one_is_killed(start, search, tmp_path):
    """The other process continues, also with the orphaned run, and makes the trials of an uninterrupted search."""
    call = ["--method", "full@id", "--trials", "5", "--together", "2"]
    assert search(*call, out="whole", over="id")[0] == 0
    other = start(tmp_path / "shared", *call)

    def kill() -> None:
        while sum(1 for _ in (tmp_path / "shared").glob("trials/*/metrics.jsonl")) < 3:
            assert other.poll() is None, other.communicate()[0]
            time.sleep(0.01)
        other.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    while not any((tmp_path / "shared").glob("trials/*/metrics.jsonl")):
        assert other.poll() is None, other.communicate()[0]
        time.sleep(0.01)
    status, output, errors = search(*call, out="shared", over="id")
    assert status == 0, errors
    killer.join(timeout=60)
    assert other.wait(timeout=60) == -signal.SIGKILL
    by_each = [[line for line in text.splitlines() if line.startswith("$ ")] for text in (output, other.stdout.read())]
    assert all(by_each) and len(by_each[0] + by_each[1]) <= 6, "at most the orphan's trial is taken up twice"
    assert stored_trials(tmp_path / "shared") == stored_trials(tmp_path / "whole")


@pytest.mark.parametrize(
    "more,message",
    [
        (
            ["--space", "adapter_rl=1..2"],
            "--space adapter_rl=1..2: --adapter_rl: no such flag; did you mean --adapter_lr",
        ),
        (["--space", "hulsby.lr=1..2"], "--space hulsby.lr: the word before the dot must be a method, not 'hulsby'"),
        (["--space", "lr"], "--space lr: give FLAG=LOW..HIGH, FLAG=LOW..HIGH:log or FLAG=A,B,C, or a JSON file"),
        (["--space", "nowhere.json"], "nowhere.json: cannot be read (No such file or directory); it, or a folder"),
        (["--trials", "0"], "--trials 0: must be at least 1"),
        (["--refit_seeds", "0", "-1"], "--refit_seeds -1: must be at least 0"),
        (
            ["--method", "full@text+id", "full@id+text"],
            "text-id-full and id-text-full would share one entry of best.json",
        ),
        (["--method", "lora:published", "--space", "variant=paper,published"], "--variant gives it one value"),
        (["--hours", "0"], "--hours 0.0: must be above 0"),
        (["--together", "0"], "--together 0: must be at least 1"),
        (["--refit_seeds", "1", "1"], "--refit_seeds 1 1: give each seed once"),
        (["--workers", "0"], "--workers 0: must be at least 1"),
        (["--method", "houlsby", "houlsby@text"], "names houlsby twice over the same items"),
        (["--method", "hulsby"], "--method hulsby: unknown; did you mean houlsby?"),
        (["--no_test"], "--no_test: the study sets it itself"),
    ],
)
def test_mistakes_are_told_before_the_first_trial(search, tmp_path, more, message):
    status, _, errors = search("--method", "houlsby", *more)
    assert status == 2 and message in errors and errors.startswith("error: ") and errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture
def searched(domain, backbones, tmp_path):
    """Return a function that makes the search of a method with the given flags."""

    def make(method: str, *space: str, source=None, **given: str) -> Search:
        flags = {("", name): [value] for name, value in {"text_encoder": str(backbones["bert"]), **given}.items()}
        study = Study(source, domain, tmp_path, method_grid([method], "text"), [0], flags)
        return Search(study, read_spaces(space), Rules())

    return make


@pytest.mark.parametrize(
    "space,message",
    [
        ("item_rank=1..2", "--space item_rank=1..2: no run of this search has such a flag"),
        ("lr=1e-3..1e-3", "--space lr=1e-3..1e-3: an empty range, 0.001 is not below 0.001"),
        ("lr=0..1e-3:log", "--space lr=0..1e-3:log: a range with :log must begin above 0, not at 0"),
        ("lr=fast..1", "--space lr=fast..1: --lr: 'fast' is not a number"),
        ("dropout=0.1,0.1", "--space dropout=0.1,0.1: names a choice twice"),
        ("activation=relu,glu", "--space activation=relu,glu: --activation: 'glu' is none of relu, gelu"),
        ("activation=relu..tanh", "is not a range of numbers; list its choices as A,B,C"),
        ("heads=2..3", "--space heads=2..3: --embedding_dim 64 cannot be divided among --heads 3"),
        ("seed=0..3", "--space seed=0..3: decides what is measured, or where; a search cannot vary it"),
        ("mask_history=seen,none", "decides what is measured, or where; a search cannot vary it"),
        ("adapter_lr=1e-4..1e-3", "--space adapter_lr=1e-4..1e-3: --adapter_lr gives it one value; leave one out"),
    ],
)
def test_spaces_that_mean_nothing(searched, space, message):
    with pytest.raises(TransrecError) as error:
        searched("houlsby", space, adapter_lr="1e-3", title_tokens="10")
    assert message in str(error.value)


def test_default_spaces_hold_what_a_method_trains_by(domain, searched):
    def varied(method: str, **given) -> set[str]:
        (method_search,) = searched(method, title_tokens="10", **given).methods
        return {each.flag for each in method_search.space}

    assert varied("full") == {"lr", "backbone_lr", "dropout"}
    assert varied("frozen") == {"lr", "dropout"}
    assert varied("houlsby", source=domain) == {"adapter_lr", "dropout"}
    assert varied("houlsby", source=domain, train_recommender="yes", adapter_lr="1") == {"lr", "dropout"}
    with pytest.raises(TransrecError, match="--method frozen: nothing of it is varied; give its ranges with --space"):
        searched("frozen", title_tokens="10", lr="1", dropout="0")


def test_settings_that_do_not_fit_together_fail_before_they_run(searched, tmp_path):
    search = searched("houlsby", "heads=1,4", "embedding_dim=2,4", title_tokens="10", dropout="0")
    search.open()
    jobs = search.new_jobs()
    states = {trial.number: trial for trial in search.methods[0].trials.all}
    assert len(states) == 4
    for number, trial in states.items():
        fits = trial.params["embedding_dim"] % trial.params["heads"] == 0
        assert (number in {job.number for job in jobs}) == fits == (trial.state.name == "RUNNING")
        assert fits or "cannot be divided among --heads 4" in trial.user_attrs["reason"]


def test_a_file_gives_spaces_and_a_dry_run_writes_nothing(search, tmp_path):
    path = tmp_path / "space.json"
    path.write_text(json.dumps({"dropout": [0.1, 0.2], "houlsby": {"item_bottleneck": "8..64:log"}}))
    status, output, _ = search("--method", "houlsby", "full@id", "--space", str(path), "--dry_run")
    assert status == 0 and not (tmp_path / "out").exists()
    assert (
        "text-houlsby: lr 1e-5..1e-2:log, adapter_lr 1e-5..1e-2:log, dropout 0.1,0.2, item_bottleneck 8..64:log;"
        in output
    )
    assert "id-full: lr 1e-5..1e-2:log, dropout 0.1,0.2;" in output
    path.write_text("{")
    assert "space.json: is not JSON" in search("--method", "houlsby", "--space", str(path))[2]


def test_without_optuna_the_extra_is_named(search, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    status, _, errors = search("--method", "houlsby")
    assert status == 2 and "pip install 'transrec[search]'" in errors


def test_a_search_trains(search, tmp_path, quick_starts, monkeypatch):
    """A complete search with real training: an ID baseline and two methods, which are then tested."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    call = ["--method", "full@id", "frozen", "houlsby", "--trials", "1", "--epochs", "1", "--refit_seeds", "0"]
    status, output, errors = search(*call, "--workers", "2")
    assert status == 0, output + errors
    for name, ((_, _, value, *_),) in stored_trials(tmp_path / "out").items():
        (refit,) = (tmp_path / "out" / "runs").glob(f"{name}-seed0-*/result.json")
        assert json.loads(refit.read_text())["validation"]["HR@10"] == value, "the same run, tested too"


def test_tables_escape_what_runs_said():
    row = dict.fromkeys(("trials", "complete", "pruned", "failed", "unfinished"), 1) | {
        "hours": 0.5,
        "best trial": None,
    }
    row |= {
        "method": "a|b",
        "selected by": "HR@10",
        "validation": None,
        "settings": {},
        "space": {},
        "failure": "\x1b[31m",
    }
    text = search_tables([row], "1 trial")["search.md"]
    assert "a\\|b" in text and "\x1b" not in text


@pytest.mark.long
def test_trials_are_jobs_of_a_cluster(stub, search, tmp_path):
    """With submitit's local executor, the trials equal those of a search that runs them as processes."""
    pytest.importorskip("submitit", reason="needs submitit, of the extra cluster")
    call = ["--method", "full@id", "--trials", "2", "--refit_seeds", "0"]
    assert search(*call, out="whole", over="id")[0] == 0
    status, output, errors = search(*call, "--cluster", "local", over="id")
    assert status == 0 and output.count("\njob ") == 3, output + errors
    assert stored_trials(tmp_path / "out") == stored_trials(tmp_path / "whole")
