"""Studies in a real SLURM of one node: every run ends with the numbers of --workers 1, whatever happens to its job."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY
from one_node import missing, output_of, slurm

from transrec.data.demo import Domain, make_domain_with_store

pytest.importorskip("submitit", reason="needs submitit, of the extra cluster")
pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(missing()), reason=missing())]

SECONDS = 600
EPOCHS = 12
SEEDS = ("0", "1", "2", "3")


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """The environment of users of the SLURM."""
    with slurm(cpus=2) as of_slurm:
        yield of_slurm | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


@pytest.fixture(scope="module")
def words(backbones, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("data") / "data"
    make_domain_with_store(folder, Domain("data", users=300, items=200, longest=9, seed=3))
    flags = ["--target", folder, "--text_encoder", backbones["bert"], "--batch_size", "8", "--epochs", str(EPOCHS)]
    flags += ["--embedding_dim", "16", "--max_seq_len", "6", "--title_tokens", "10", "--patience", "100"]
    axes = ["--insert", "item", "--bottleneck", "8/4", "--train_layernorm", "false", "--method", "houlsby"]
    return [sys.executable, str(REPOSITORY / "scripts" / "study_insertion.py"), *map(str, flags), *axes]


class Studies:
    """Starts studies, and reads their results."""

    def __init__(self, words: list[str], environment: dict[str, str]):
        self.words, self.environment = words, environment

    def start(self, out: Path, *more: str) -> subprocess.Popen:
        cluster = ["--cluster", "slurm", "--job_gpus", "0", "--job_cpus", "1", "--job_memory", "0.4"]
        command = [*self.words, "--out", str(out), *cluster, *more]
        return subprocess.Popen(
            command, env=self.environment, cwd=out.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def finish(self, process: subprocess.Popen, status: int = 0) -> str:
        output, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == status, output
        return output

    def jobs(self) -> dict[str, tuple[str, str]]:
        """Return id and state of each job by its name."""
        lines = output_of(self.environment, "squeue", "--noheader", "--format=%j %A %T").splitlines()
        return {words[0]: (words[1], words[2]) for words in map(str.split, lines)}

    def wait_for_epoch(self, out: Path, seed: str, epochs: int = 1) -> Path:
        """Wait for a run to finish a number of epochs, and return its folder."""
        deadline = time.monotonic() + SECONDS
        while True:
            for path in out.glob(f"runs/*seed{seed}-*/metrics.jsonl"):
                if len(path.read_text().splitlines()) >= epochs:
                    return path.parent
            assert time.monotonic() < deadline, f"no epoch: {self.jobs()}"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def studies(words, environment) -> Studies:
    return Studies(words, environment)


@pytest.fixture(scope="module")
def unbroken(words, environment, tmp_path_factory) -> dict[str, dict]:
    """The results of --workers 1, by run."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    command = [*words, "--out", str(out), "--workers", "1", "--seeds", *SEEDS]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=SECONDS)
    return results(out)


def results(out: Path) -> dict[str, dict]:
    """Return the parts of each run's result that determine the tables, to the last bit."""
    read = {path.parent.name: json.loads(path.read_text()) for path in out.glob("runs/*/result.json")}
    keys = ("test", "validation", "best_epoch", "trainable_parameters")
    return {name: {key: result[key] for key in keys} for name, result in read.items()}


def log_of(out: Path, run: Path) -> str:
    return (out / "logs" / f"{run.name}.txt").read_text()


def test_each_run_is_a_job_and_gives_the_same_numbers(studies, unbroken, tmp_path):
    output = studies.finish(studies.start(tmp_path / "out", "--seeds", *SEEDS))
    assert results(tmp_path / "out") == unbroken and len(unbroken) == len(SEEDS)
    assert len(re.findall(r"^job \d+ +\$ ", output, re.MULTILINE)) == len(SEEDS)
    assert not studies.jobs() and not [*(tmp_path / "out" / "cluster").iterdir()]


def test_jobs_that_are_requeued_preempted_or_killed_go_on(studies, unbroken, tmp_path):
    out = tmp_path / "out"
    seed = random.randrange(1000)
    print(f"moments are drawn from {seed}")
    moments = random.Random(seed)
    process = studies.start(out, "--seeds", *SEEDS)

    def number_of(run: Path) -> str:
        return next(number for name, (number, _) in studies.jobs().items() if name.startswith(run.name))

    def kill(run: Path) -> None:
        """Kill all processes of a job by SIGKILL, which SLURM regards as a failure."""
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            if run.name.encode() in command.read_bytes() and b"slurmstepd" not in command.read_bytes():
                os.kill(int(command.parent.name), signal.SIGKILL)

    befalls = {
        "0": lambda run: output_of(studies.environment, "scontrol", "requeue", number_of(run)),
        "1": lambda run: output_of(studies.environment, "scancel", "--signal=USR2", number_of(run)),
        "2": lambda run: output_of(studies.environment, "scancel", "--signal=TERM", number_of(run)),
        "3": kill,
    }
    for each, befall in befalls.items():
        run = studies.wait_for_epoch(out, each, moments.randint(1, EPOCHS // 2))
        time.sleep(moments.random())
        befall(run)
    output = studies.finish(process, status=1)
    assert "1 of 4 runs failed" in output and "was ended by the cluster" in output
    for each in "0", "1", "2":
        (run,) = out.glob(f"runs/*seed{each}-*")
        assert "resumed     epoch" in log_of(out, run), f"seed {each} was not interrupted"
        assert log_of(out, run).count(" of slurm\n") == 1, "queued again, not submitted twice"
    output = studies.finish(studies.start(out, "--seeds", *SEEDS))
    assert results(out) == unbroken, output


def test_a_study_that_is_stopped_finds_its_jobs_again(studies, unbroken, tmp_path):
    out = tmp_path / "out"
    process = studies.start(out, "--seeds", *SEEDS)
    studies.wait_for_epoch(out, "0")
    process.send_signal(signal.SIGINT)
    output = studies.finish(process, status=128 + signal.SIGINT)
    told = r"its jobs continue in the cluster, where the same command finds them; .*: scancel( \d+){4}"
    assert re.search(told, output)
    assert len(studies.jobs()) == 4
    output = studies.finish(studies.start(out, "--seeds", *SEEDS))
    assert "is in the cluster already" in output and results(out) == unbroken
    assert all(path.read_text().count(" of slurm\n") == 1 for path in out.glob("logs/*.txt")), output


def test_a_cancelled_job_is_not_submitted_again(studies, tmp_path):
    out = tmp_path / "out"
    process = studies.start(out, "--seeds", "0")
    studies.wait_for_epoch(out, "0")
    ((number, _),) = studies.jobs().values()
    output_of(studies.environment, "scancel", number)
    output = studies.finish(process, status=1)
    assert re.search(r"stopped by SIGTERM: epoch .* is saved", output), output
    assert not studies.jobs()


def test_a_run_longer_than_its_time_limit_goes_on(studies, tmp_path):
    """The limit is three minutes; the run is asked to save in time, and after half a minute at the earliest."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    long = ["--houlsby.epochs", str(EPOCHS * 14), "--seeds", "0"]
    command = [*studies.words, *long, "--out", str(whole), "--workers", "1"]
    with subprocess.Popen(command, env=studies.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        studies.finish(studies.start(out, "--job_hours", "0.05", *long))
    (log,) = (path.read_text() for path in out.glob("logs/*.txt"))
    assert "resumed     " in log
    assert results(out) == results(whole) != {}


def test_what_the_cluster_does_not_have_is_told_at_once(studies, tmp_path):
    output = studies.finish(studies.start(tmp_path / "out", "--job_partition", "none"), status=2)
    assert output.splitlines()[-1] == "error: --job_partition none: the cluster has main"
    output = studies.finish(studies.start(tmp_path / "out", "--job_gpus", "1"), status=2)
    assert output.splitlines()[-1].startswith("error: the cluster refused a job of 1 GPU, 1 CPU, 0.4 GiB")
