"""A run as a job of a cluster: told that it has to leave, it saves, and its job is queued again.

Nothing is imported here that a job would have to wait for, as torch: the run is a process of its own.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

# A process that a signal ended has this and the signal as the exit status of its job.
SIGNALLED = 128
STOPPED = SIGNALLED + signal.SIGTERM


@dataclass
class ClusterJob:
    """What a job runs, as submitit calls it.

    A job gets SIGUSR2 ahead of its time limit, and SIGTERM, or that and SIGUSR2, where another one preempts it: the run
    saves, and the job is queued again. A job that is cancelled saves and is not.

    Args:
        begin, go_on: the commands of a run that has not begun, and of one that has.
        begun: the file by which one knows that it has.
        log: where its output is added.
        status: where its exit status is written once it is over.
        threads: of each of the run's processes, where the environment does not say; None: what it takes of itself.
    """

    begin: list[str]
    go_on: list[str]
    begun: Path
    log: Path
    status: Path
    threads: int | None = None

    def __post_init__(self):
        self._process: subprocess.Popen | None = None
        self._is_told = False

    def __call__(self) -> None:
        """Run it to its end, write its exit status, and leave with that."""
        signal.signal(signal.SIGTERM, lambda number, frame: self._stop())
        self.status.unlink(missing_ok=True)
        environment = dict(os.environ)
        if self.threads is not None:
            environment.setdefault("OMP_NUM_THREADS", str(self.threads))
        command = self.go_on if self.begun.exists() else self.begin
        with open(self.log, "ab") as log:
            # SLURM signals all processes of a job; the run knows SIGTERM alone.
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, preexec_fn=_ignore_preemption
            )
        if self._is_told:
            # Before there was a process to tell.
            self._process.terminate()
        self._wait()
        status = self._process.wait()
        status = SIGNALLED - status if status < 0 else status
        if status == STOPPED and self._is_told and _may_go_on():
            signal.raise_signal(signal.SIGUSR2)
        _write(self.status, str(status))
        sys.exit(status)

    def checkpoint(self) -> "DelayedSubmission":
        """Have the run save and leave; returns what goes on with it, for submitit, which queues the job again."""
        from submitit.helpers import DelayedSubmission

        self._stop()
        self._wait()
        return DelayedSubmission(replace(self))

    def _stop(self) -> None:
        """Tell the run to save and leave: once, since twice would be taken as impatience."""
        if not self._is_told and self._process:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)
        self._is_told = True

    def _wait(self) -> None:
        # A handler that interrupted Popen.wait could not call it too.
        if self._process:
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)


def _ignore_preemption() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _may_go_on() -> bool:
    """Whether the job was asked to make room: one that was cancelled, or that SLURM queues again itself, is over."""
    if (job := os.environ.get("SLURM_JOB_ID")) is None:
        return False
    told = subprocess.run(["squeue", "--noheader", "--format=%T", f"--jobs={job}"], capture_output=True, text=True)
    return told.stdout.strip() == "RUNNING"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
