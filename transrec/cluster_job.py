"""Runs transrec in a job on a cluster. If the job has to leave, the run saves and the job is queued again.

Nothing here imports torch or other slow modules, which the job would have to wait for: the run is a separate process.
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

# If a signal ended the run, the exit status of its job is this number plus that of the signal.
SIGNALLED = 128
STOPPED = SIGNALLED + signal.SIGTERM


@dataclass
class ClusterJob:
    """The function that a job calls, in the form that submitit expects.

    A job receives SIGUSR2 shortly before its time limit. If another job preempts it, it receives SIGTERM, or both
    signals. In either case the run saves, and the job is queued again. A cancelled job saves and is not queued again.

    Args:
        start_command, resume_command: the commands that start the run, and that continue it once it has begun.
        started_file: a file that exists once the run has begun.
        log: the file to which the run's output is appended.
        status: the file to which the run's exit status is written when it ends.
        threads: threads of each of the run's processes, unless the environment sets them; None: as the run chooses.
    """

    start_command: list[str]
    resume_command: list[str]
    started_file: Path
    log: Path
    status: Path
    threads: int | None = None

    def __post_init__(self):
        self._process: subprocess.Popen | None = None
        self._stop_requested = False

    def __call__(self) -> None:
        """Run the command to its end, write its exit status, and exit with the same status."""
        signal.signal(signal.SIGTERM, lambda number, frame: self._stop())
        self.status.unlink(missing_ok=True)
        environment = dict(os.environ)
        if self.threads is not None:
            environment.setdefault("OMP_NUM_THREADS", str(self.threads))
        command = self.resume_command if self.started_file.exists() else self.start_command
        with open(self.log, "ab") as log:
            # SLURM signals all processes of a job, and the run handles only SIGTERM.
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, preexec_fn=_ignore_preemption
            )
        if self._stop_requested:
            # The signal came before there was a process to pass it on to.
            self._process.terminate()
        self._wait()
        status = self._process.wait()
        status = SIGNALLED - status if status < 0 else status
        if status == STOPPED and self._stop_requested and _may_be_requeued():
            signal.raise_signal(signal.SIGUSR2)
        _write(self.status, str(status))
        sys.exit(status)

    def checkpoint(self) -> "DelayedSubmission":
        """Make the run save and leave. Return the submission that continues it, for submitit to queue."""
        from submitit.helpers import DelayedSubmission

        self._stop()
        self._wait()
        return DelayedSubmission(replace(self))

    def _stop(self) -> None:
        """Tell the run to save and leave. Do so only once: a second signal makes a run stop at once."""
        if not self._stop_requested and self._process:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)
        self._stop_requested = True

    def _wait(self) -> None:
        # Not Popen.wait, because a signal handler that interrupts it could not call it as well.
        if self._process:
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)


def _ignore_preemption() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _may_be_requeued() -> bool:
    """Return whether the job was only asked to make room. It is over if it was cancelled or SLURM requeues it."""
    if (job := os.environ.get("SLURM_JOB_ID")) is None:
        return False
    result = subprocess.run(["squeue", "--noheader", "--format=%T", f"--jobs={job}"], capture_output=True, text=True)
    return result.stdout.strip() == "RUNNING"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
