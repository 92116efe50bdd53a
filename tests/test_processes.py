"""Groups of processes: a run's ranks and their launcher, and the workers that read its images."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from test_training import ENVIRONMENT, SCRIPTS, assert_same_run, finish, finished, start

from transrec.training import checkpoint

BAR = re.compile(r"\d+%\|| \?it/s|/s\]")
IMAGE_SCRIPT = REPOSITORY / "Downstream" / "CV" / "script" / "sm_vit_frozen.py"


def children(pid: int) -> list[int]:
    """Return the processes that `pid` itself started."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(word) for word in listed.split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(reached, seconds: float = 120):
    """Wait until `reached()` is true, and return its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := reached():
            return value
        time.sleep(0.05)
    pytest.fail("that never came")


def launched(flags: list[str], folder: Path, *more: str) -> subprocess.Popen:
    """Start a long run of two ranks, and wait until it has saved a state."""
    long = ["--epochs", "500", "--patience", "500", "--save_steps", "1"]
    process = group([str(SCRIPTS / "frozen.py"), *flags, *long, "--nproc", "2", *more, "--output", str(folder)])
    until((folder / "checkpoints" / "last.safetensors").exists)
    return process


def group(command: list[str]) -> subprocess.Popen:
    """Start a script in its own process group."""
    return subprocess.Popen(
        [sys.executable, *command],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def messages(process: subprocess.Popen) -> list[str]:
    """Return the lines of a process's standard error without progress bars."""
    _, text = process.communicate(timeout=120)
    return [line for line in map(str.strip, re.split("[\r\n]", text)) if line and not BAR.search(line)]


@pytest.mark.long
@pytest.mark.parametrize(("number", "prefix"), [(1, ""), (0, "process 1: ")])
def test_a_stopped_rank_is_named(flags, tmp_path, number, prefix):
    process = launched(flags, tmp_path / "run", "--timeout", "4")
    stopped = children(process.pid)[number]
    os.kill(stopped, signal.SIGSTOP)
    (line,) = messages(process)
    assert process.returncode == 2
    assert line.startswith(f"error: {prefix}process {number} of 2 does not answer (--timeout 4 seconds)")
    assert not is_alive(stopped)


def test_a_killed_rank_is_named(flags, tmp_path):
    process = launched(flags, tmp_path / "run")
    first, second = children(process.pid)
    os.kill(second, signal.SIGKILL)
    (line,) = messages(process)
    assert process.returncode == 128 + signal.SIGKILL
    assert line.startswith("error: process 1 of 2 was killed by SIGKILL")
    assert not is_alive(first)


@pytest.mark.long
def test_ranks_end_with_their_launcher(flags, tmp_path):
    process = launched(flags, tmp_path / "run")
    ranks = children(process.pid)
    assert len(ranks) == 2
    process.kill()
    until(lambda: not any(map(is_alive, ranks)), seconds=10)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_signal_to_all_ends_like_that_of_one_process(flags, tmp_path, number):
    process = launched(flags, tmp_path / "run")
    os.killpg(process.pid, number)
    first, line = messages(process)
    assert process.returncode == 128 + number
    assert first == f"{number.name}: stops after this step and saves; the same again stops at once"
    assert re.match(rf"stopped by {number.name}: epoch 1, step \d+ of 8 is saved; continue with: ", line)
    assert line.endswith(f"frozen.py --resume {tmp_path / 'run'} --nproc 2")


def test_a_mistake_is_told_once(flags, tmp_path):
    flags = [*flags, "--nproc", "2", "--output", str(tmp_path / "run")]
    process = group([str(SCRIPTS / "frozen.py"), *flags, "--title_tokens", "300"])
    (line,) = messages(process)
    assert process.returncode == 2
    assert line.startswith("error: --title_tokens")


@pytest.mark.long
def test_a_signal_to_the_group_leaves_image_workers_until_the_run_has_saved(domain, backbones, tmp_path):
    """SLURM and systemd signal every process of a job."""
    sizes = [
        "--embedding_dim",
        "16",
        "--max_seq_len",
        "6",
        "--batch_size",
        "2",
        "--epochs",
        "3",
        "--image_workers",
        "2",
        "--cached",
        "no",
    ]
    flags = ["--dataset", str(domain), "--image_encoder", str(backbones["vit"]), *sizes]
    script = os.path.relpath(IMAGE_SCRIPT, SCRIPTS)
    finished(script, [*flags, "--output", str(tmp_path / "whole")])

    process = group([str(IMAGE_SCRIPT), *flags, "--output", str(tmp_path / "run")])
    metrics = tmp_path / "run" / "metrics.jsonl"
    until(metrics.exists)
    workers = until(lambda: children(process.pid))
    os.killpg(process.pid, signal.SIGTERM)
    *_, line = messages(process)
    assert process.returncode == 128 + signal.SIGTERM
    assert re.match(r"stopped by SIGTERM: .* is saved; continue with: ", line)
    until(lambda: not any(map(is_alive, workers)), seconds=10)
    finished(script, ["--resume", str(tmp_path / "run")])
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_image_workers_end_with_a_run_that_is_killed(domain, backbones, tmp_path):
    sizes = ["--embedding_dim", "16", "--max_seq_len", "6", "--batch_size", "2", "--epochs", "500", "--patience", "500"]
    flags = ["--dataset", str(domain), "--image_encoder", str(backbones["vit"]), *sizes, "--image_workers", "2"]
    flags += ["--cached", "no"]
    process = start(os.path.relpath(IMAGE_SCRIPT, SCRIPTS), [*flags, "--output", str(tmp_path / "run")])
    until((tmp_path / "run" / "options.json").exists)
    workers = until(lambda: children(process.pid))
    process.kill()
    process.communicate()
    until(lambda: not any(map(is_alive, workers)), seconds=10)


@pytest.mark.long
def test_a_run_resumes_after_its_launcher_was_killed(flags, tmp_path):
    process = launched(flags, tmp_path / "run")
    ranks = children(process.pid)
    process.kill()
    until(lambda: not any(map(is_alive, ranks)), seconds=10)
    _, description = checkpoint.read(tmp_path / "run" / "checkpoints" / "last.safetensors")
    epochs = description.state["epoch"]
    resumed = start("frozen.py", ["--resume", str(tmp_path / "run"), "--epochs", str(epochs + 1), "--nproc", "2"])
    assert "resumed " in finish(resumed)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs_trained"] == epochs + 1


def test_a_signal_to_processes_that_are_done_makes_no_failure_of_it(tmp_path):
    """The launcher receives the signal while its processes, which ignore it by then, shut torch down."""
    program = (
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from transrec.command import reporting\n"
        "from transrec.training import launcher\n"
        "if 'RANK' in os.environ:\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"    Path({str(tmp_path)!r}, os.environ['RANK']).touch()\n"
        "    time.sleep(2)\n"
        "    sys.exit(0)\n"
        "pass_on = launcher._Launch._pass_on\n"
        "def joined(self, stop):\n"
        "    for rank in range(2):\n"
        "        self.store.set(f'{launcher.JOINED}/{rank}', '1')\n"
        "    pass_on(self, stop)\n"
        "launcher._Launch._pass_on = joined\n"
        "with reporting():\n"
        "    launcher.launch(2)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], env=ENVIRONMENT, cwd=REPOSITORY)
    while len(list(tmp_path.iterdir())) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 0
