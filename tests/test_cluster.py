"""Studies by --cluster local, submitit's local executor; tests/slurm has a real SLURM.

Training is replaced by a script that writes a result at once; depending on its seed, it is preempted, fails, or runs
for a minute.
"""

import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from transrec.studies import Axis, Grid, main
from transrec.studies import study as studies
from transrec.studies.cluster import CLUSTERS, Cluster, ClusterWorkers

pytest.importorskip("submitit", reason="needs submitit, of the extra cluster")
pytestmark = pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps, by which jobs of this machine are found")

STUB = """
import json, os, signal, sys, time
words = sys.argv[1:]
said = {word[2:]: words[i + 1] for i, word in enumerate(words[:-1]) if word.startswith("--")}
folder, begun = said.get("output") or said["resume"], "resume" in said
os.makedirs(folder, exist_ok=True)
if "output" in said:
    assert not os.path.exists(folder + "/options.json"), "holds a run already"
open(folder + "/options.json", "w").write("{}")
def save(number, frame):
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print(words[-2], os.environ.get("OMP_NUM_THREADS"), flush=True)
if said["seed"] == "1" and not begun:
    os.kill(os.getppid(), signal.SIGUSR2)
    time.sleep(60)
if said["seed"] == "2":
    sys.exit("error: out of memory while training; free some")
if said["seed"] == "3":
    time.sleep(60)
scores = {"HR@10": 0.5 + int(said["seed"]), "NDCG@10": 0.1}
numbers = ("trainable_parameters total_parameters epochs_trained checkpoint_bytes seconds_per_epoch wall_seconds "
           "peak_memory_mib peak_host_memory_mib").split()
result = {"validation": scores, "test": scores, "popularity": scores, "phase_seconds": {}, **dict.fromkeys(numbers, 1)}
open(folder + "/.result", "w").write(json.dumps(result))
os.replace(folder + "/.result", folder + "/result.json")
"""
GRID = Grid((Axis("method", ("frozen",)),))


@pytest.fixture
def words(domain, backbones, tmp_path, monkeypatch) -> Iterator[list[str]]:
    """The flags of a study whose runs use the script above."""
    path = tmp_path / "stub.py"
    path.write_text(STUB)
    monkeypatch.setattr(studies, "SCRIPT", path)
    sizes = ["--embedding_dim", "16", "--max_seq_len", "6", "--title_tokens", "10"]
    out = tmp_path / "out"
    yield ["--target", str(domain), "--text_encoder", str(backbones["bert"]), *sizes, "--out", str(out)]
    for number in numbers(out):
        os.kill(int(number), signal.SIGTERM)


def numbers(out: Path) -> list[str]:
    """Return the numbers of the jobs of a study that are on this machine."""
    return [number for name, (number, _) in CLUSTERS["local"].jobs().items() if (out / "cluster" / name).is_dir()]


def call(words: list[str], *more: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main("", GRID, [*words, *more])
    return exit_.value.code


def ended(out: Path) -> list[str]:
    return sorted(path.parent.name[:12] for path in out.glob("runs/*/result.json"))


def test_each_run_is_a_job_that_goes_on_when_it_is_preempted(words, tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    out = tmp_path / "out"
    assert call(words, "--cluster", "local", "--job_cpus", "3", "--seeds", "0", "1", "2") == 1
    output = capfd.readouterr().out
    assert "cluster     local: each run is a job of 1 GPU, 3 CPUs, 24 hours at a time\n" in output
    assert len(re.findall(r"^job \d+ +\$ .* --output ", output, re.MULTILINE)) == 3
    assert "failed      frozen-seed2 (status 1), " in output and "  error: out of memory while training" in output
    log = next(out.glob("logs/frozen-seed1-*.txt")).read_text()
    assert re.fullmatch(r"(?s)(job         \d+ of local\n|--output 3\n|saved\n){3}--resume 3\n", log)
    assert ended(out) == ["frozen-seed0", "frozen-seed1"] and "1.0000 ± 0.7071" in (out / "table.md").read_text()
    assert [path.name[:12] for path in (out / "cluster").iterdir()] == ["frozen-seed2"], "kept of what failed"


def test_a_stopped_study_finds_its_jobs_again(words, tmp_path, capfd):
    """After a stop during a run, the same command waits for the same job; the job, then cancelled, saves."""
    out = tmp_path / "out"

    def interrupt_once(bar, text: str) -> None:
        if next(iter(out.glob("runs/*/options.json")), None):
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transrec.studies.workers.Bar.set_postfix_str", interrupt_once)
        assert call(words, "--cluster", "local", "--seeds", "3") == 128 + signal.SIGINT
    (number,) = numbers(out)
    message = "its jobs continue in the cluster, where the same command finds them; to cancel them: "
    assert capfd.readouterr().err.splitlines()[-1] == f"stopped by SIGINT: {message}kill {number}"

    def cancel(bar, text: str) -> None:
        with suppress(ProcessLookupError):
            os.kill(int(number), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transrec.studies.workers.Bar.set_postfix_str", cancel)
        assert call(words, "--cluster", "local", "--seeds", "3") == 1
    output = capfd.readouterr().out
    assert f"job {number:<8}frozen-seed3: is in the cluster already\n" in output
    assert "failed      frozen-seed3 (status 143), " in output and "\n  saved\n" in output
    assert not numbers(out) and next(out.glob("logs/*.txt")).read_text().count("--output") == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--job_gpus", "2"], "--job_gpus: says what a job of a cluster asks for; give --cluster too"),
        (["--cluster", "local", "--job_gpus", "-1"], "--job_gpus -1: must be at least 0, and finite"),
        (["--cluster", "local", "--job_cpus", "0"], "--job_cpus 0: must be at least 1, and finite"),
        (["--cluster", "local", "--job_memory", "0"], "--job_memory 0: must be above 0, and finite"),
        (["--cluster", "local", "--job_hours", "inf"], "--job_hours inf: must be at least 0.05, and finite"),
        (["--cluster", "local", "--workers", "0"], "--workers 0: must be at least 1"),
        (["--cluster", "pbs"], "--cluster: 'pbs' is none of slurm, local"),
    ],
)
def test_mistakes_are_told_before_anything_is_submitted(words, tmp_path, capsys, more, message):
    assert call(words, *more) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "out").exists()


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Return a function that replaces commands of SLURM by scripts of the test."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def write(**scripts: str) -> None:
        for name, text in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)

    return write


def test_what_a_cluster_does_not_have_or_take_is_told(words, capsys, commands):
    slurm = ["--cluster", "slurm", "--job_partition", "gpu,cpu"]
    commands(squeue="echo slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1")
    assert call(words, *slurm) == 2
    last = "error: --cluster slurm: squeue fails (slurm_load_jobs error: Unable to contact slurm controller)\n"
    assert capsys.readouterr().err == last
    commands(squeue="", sinfo="echo cpu; echo long", srun="", sbatch="echo sbatch: error: invalid account >&2; exit 1")
    assert call(words, *slurm) == 2
    assert capsys.readouterr().err == "error: --job_partition gpu: the cluster has cpu, long\n"
    assert call(words, "--cluster", "slurm", "--job_partition", "cpu") == 2
    last = "error: the cluster refused a job of 1 GPU, 24 hours at a time, in cpu (sbatch: error: invalid account); "
    assert capsys.readouterr().err.splitlines()[-1].startswith(last)


def test_a_cluster_that_takes_no_more_is_asked_again_later(words, tmp_path, capsys, commands, monkeypatch):
    """The cluster refuses a second job while the first is there, and then does not answer for a while."""
    queue = tmp_path / "queue"
    commands(
        srun="",
        squeue=f"test -e {queue} && cat {queue}; exit 0",
        sbatch=f"test -s {queue} && {{ echo limit of jobs >&2; exit 1; }}\n"
        f"echo 7 PENDING $(sed -n 's/.*job-name=//p' $1) > {queue}; echo Submitted batch job 7",
    )
    monkeypatch.setattr("transrec.studies.cluster.SECONDS_UNTIL_ASKED_AGAIN", 0)
    monkeypatch.setattr(ClusterWorkers, "poll_seconds", 0)
    monkeypatch.setitem(CLUSTERS, "slurm", Cluster(**vars(CLUSTERS["slurm"]) | {"seconds": 0, "patience": 0}))
    turns = iter(range(100))

    def befall(bar, text: str) -> None:
        turn = next(turns)
        if turn == 1:
            commands(squeue="echo timed out >&2; exit 1")
        elif turn == 3:
            commands(squeue=f"cat {queue}")
            queue.write_text("")
        elif turn == 4:
            queue.write_text("")

    monkeypatch.setattr("transrec.studies.workers.Bar.set_postfix_str", befall)
    assert call(words, "--cluster", "slurm", "--job_gpus", "0", "--seeds", "0", "1") == 1
    output = capsys.readouterr().out
    assert "waiting     frozen-seed1: the cluster refused a job of 0 GPUs, 24 hours at a time (limit of jobs)" in output
    assert output.count("waiting     --cluster slurm: squeue fails (timed out)") == 1
    assert len(re.findall(r"^job 7 +\$ ", output, re.MULTILINE)) == 2, output
    assert output.count("  job         7 was ended by the cluster, or by whoever cancelled it") == 2
