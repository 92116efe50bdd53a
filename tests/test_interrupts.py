"""Ctrl-C and SIGTERM at any moment: one line says what is kept and how to continue, to the same numbers."""

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from conftest import FEW_STEPS, REPOSITORY, encoder_flags
from test_training import ENVIRONMENT, assert_same_run

from transrec.data.images.sources import Folder
from transrec.data.images.store import ImageStore
from transrec.data.states import StateBuilder
from transrec.training.evaluation import Evaluator
from transrec.training.run import Run
from transrec.training.trainer import Trainer

AGAIN = "nothing is lost, the same command starts again"


def stopped_at(monkeypatch, place, name: str | None, spared: int, *numbers: signal.Signals) -> None:
    """Raise signals in one call of a function, after `spared` earlier calls."""
    calls = iter(range(10**6))

    def interrupted(original: Callable) -> Callable:
        def call(*arguments, **keywords):
            if next(calls) == spared:
                for number in numbers:
                    signal.raise_signal(number)
            return original(*arguments, **keywords)

        return call

    if name is None:
        module, _, name = place.rpartition(".")
        place = sys.modules[module]
    monkeypatch.setattr(place, name, interrupted(getattr(place, name)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize(
    "place,name",
    [
        ("transrec.runner.parse", None),
        ("transrec.runner.load_dataset", None),
        ("transrec.data.catalog.tokenise", None),
        ("transrec.data.catalog.save_file", None),
        ("transrec.models.backbone.load_backbone", None),
        (Run, "write_options"),
    ],
    ids=lambda value: str(value).rpartition(".")[2],
)
def test_before_training(command, tmp_path, monkeypatch, place, name, number):
    stopped_at(monkeypatch, place, name, 0, number)
    status, message = command("--cache_dir", str(tmp_path / "tokens"))
    assert (status, message) == (128 + number, f"stopped by {number.name}: {AGAIN}")
    assert not (tmp_path / "run").exists()
    assert [path for path in tmp_path.rglob("*") if path.name.startswith(".")] == [], "nothing half-written"


@pytest.mark.parametrize(
    "place,name,spared,saved,noted",
    [
        (Trainer, "_step", 1, "epoch 1, step 2 of 3", True),
        ("transrec.training.checkpoint.save_file", None, 0, "epoch 1, step 3 of 3", True),
        (Evaluator, "encode_items", 0, "epoch 1, step 3 of 3", False),
        (Run, "write_metrics", 0, "the end of epoch 1", True),
        (Trainer, "_step", 3, "epoch 2, step 1 of 3", True),
        (Evaluator, "encode_items", 2, "the end of epoch 2", False),
        (Run, "write_result", 0, "the end of epoch 2", False),
    ],
    ids=["first epoch", "while saving", "while evaluating", "between epochs", "second epoch", "in the test", "result"],
)
def test_in_training(command, unbroken_run, tmp_path, monkeypatch, place, name, spared, saved, noted):
    """If `noted` is true, the current step is finished first, and a message says so."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        stopped_at(patched, place, name, spared, signal.SIGINT)
        status, message = command()
    line = f"stopped by SIGINT: {saved} is saved; continue with: python adapter.py --resume {folder}"
    assert (status, message) == (130, line)
    assert (folder / "log.txt").read_text().splitlines()[-1].endswith(line)
    soon = "SIGINT: stops after this step and saves; the same again stops at once"
    assert (soon in command.errors) == noted
    assert command("--resume", str(folder))[0] == 0
    assert_same_run(unbroken_run, folder)


def test_twice_acts_at_once(command, unbroken_run, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        # Two signals in quick succession would otherwise count as one.
        patched.setattr("transrec.training.trainer.SECONDS_OF_ONE_SIGNAL", -1)
        stopped_at(patched, Trainer, "_step", 1, signal.SIGINT, signal.SIGINT)
        status, message = command()
    assert status == 130 and "no step is saved yet; continue with: python adapter.py --resume" in message
    assert command("--resume", str(tmp_path / "run"))[0] == 0
    assert_same_run(unbroken_run, tmp_path / "run")


def test_while_a_resumed_run_starts(command, unbroken_run, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        stopped_at(patched, Trainer, "_step", 4, signal.SIGINT)
        command()
    with monkeypatch.context() as patched:
        stopped_at(patched, "transrec.models.backbone.load_backbone", None, 0, signal.SIGINT)
        status, message = command("--resume", str(folder))
    assert status == 130 and message.endswith(f"; continue with: python adapter.py --resume {folder}")
    assert command("--resume", str(folder))[0] == 0
    assert_same_run(unbroken_run, folder)


def test_while_hidden_states_are_cached(command, backbones, tmp_path, monkeypatch):
    for module in ("transrec.data.states", "transrec.caching"):
        monkeypatch.setattr(f"{module}.BLOCK_ITEMS", 64)
    flags = [*encoder_flags("bert+vit", backbones), "--cached", "true", "--state_cache", str(tmp_path / "states")]
    flags += ["--text_layers", "0", "1", "--image_layers", "0", "1"]
    with monkeypatch.context() as patched:
        stopped_at(patched, StateBuilder, "write_block", 2, signal.SIGINT)
        status, message = command(*flags, method="iisan")
    kept = "2 of 3 blocks of text states are kept, the same command continues"
    assert (status, message) == (130, f"stopped by SIGINT: {kept}") and not (tmp_path / "run").exists()
    begun, begin = [], StateBuilder.begin
    monkeypatch.setattr(StateBuilder, "begin", lambda self: begun.append(begin(self)) or begun[-1])
    assert command(*flags, method="iisan")[0] == 0 and begun == [2, 0]


def test_while_an_image_store_is_made(domain, tmp_path, monkeypatch, capfd):
    out = tmp_path / "s.lmdb"
    flags = ["--items", domain / "items.tsv", "--images", domain / "images", "--out", out, "--size", "32"]
    monkeypatch.setattr(sys, "argv", ["build_lmdb.py", *map(str, flags), "--store", "raw", "--workers", "1"])

    def build() -> tuple[int, str]:
        try:
            runpy.run_path(str(REPOSITORY / "Dataset" / "build_lmdb.py"), run_name="__main__")
        except SystemExit as exit_:
            return exit_.code, capfd.readouterr().err.splitlines()[-1]
        return 0, ""

    with monkeypatch.context() as patched:
        stopped_at(patched, "transrec.data.images.sources.decode", None, 100, signal.SIGTERM)
        kept = "96 of 150 images are kept, the same command continues"
        assert build() == (143, f"stopped by SIGTERM: {kept}") and not out.exists()
    loaded, load = [], Folder.load
    monkeypatch.setattr(Folder, "load", lambda self, *arguments: loaded.append(arguments) or load(self, *arguments))
    assert build() == (0, "") and len(loaded) == 54
    assert ImageStore(out).count == 150
    assert [path.name for path in tmp_path.iterdir()] == ["s.lmdb"]


WHILE_WORKERS_START = """
import multiprocessing, os, re, runpy, signal, sys
from concurrent.futures import Future
def stop_workers_first(self, *arguments):
    waiting = {worker.pid for worker in multiprocessing.active_children()}
    assert waiting
    while waiting:
        for pid in list(waiting):
            caught = int(re.search("SigCgt:(.*)", open(f"/proc/{pid}/status").read())[1], 16)
            # Once Python runs there it takes the signal, unless it is told not to.
            if caught & 1 << signal.SIGINT - 1:
                os.kill(pid, signal.SIGINT)
                waiting.remove(pid)
    signal.raise_signal(signal.SIGINT)
Future.result = stop_workers_first
if __name__ == "__main__":
    runpy.run_path(sys.argv[1], run_name="__main__")
"""


def test_while_the_workers_of_an_image_store_start(domain, tmp_path):
    """Ctrl-C reaches the workers too, before they could arrange to ignore it."""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs to see when a process takes signals")
    driver = tmp_path / "driver.py"
    driver.write_text(WHILE_WORKERS_START.replace("sys.argv[1]", repr(str(REPOSITORY / "Dataset" / "build_lmdb.py"))))
    flags = ["--items", domain / "items.tsv", "--images", domain / "images", "--out", tmp_path / "s.lmdb"]
    done = subprocess.run(
        [sys.executable, driver, *flags, "--size", "32", "--workers", "2"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        start_new_session=True,
        timeout=60,
    )
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == ("stopped by SIGINT: 0 of 150 images are kept, the same command continues")


IN_A_STEP = """
import runpy, signal, sys
from transrec.training.trainer import Trainer
step = Trainer._step
def stopped(self, *arguments):
    signal.raise_signal(signal.SIGINT)
    return step(self, *arguments)
Trainer._step = stopped
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_process_leaves_without_a_traceback(flags, tmp_path):
    script = REPOSITORY / "Downstream" / "Text" / "script" / "adapter_houlsby.py"
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", IN_A_STEP, script, *flags, *FEW_STEPS, "--output", folder],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
    )
    assert done.returncode == 130
    message = f"continue with: {sys.executable} {script} --resume {folder}"
    assert [line for line in done.stderr.splitlines() if line.strip() and "epoch 1:" not in line] == [
        "SIGINT: stops after this step and saves; the same again stops at once",
        f"stopped by SIGINT: epoch 1, step 1 of 3 is saved; {message}",
    ]
