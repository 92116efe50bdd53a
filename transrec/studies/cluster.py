"""Running a study in a cluster: each run is a SLURM job, submitted with submitit.

Everything known of a job is stored where any process of the study finds it. The job's name in the cluster's queue is
that of a folder next to the logs, `cluster/RUN-XXXXXXXX`, which holds submitit's files and, once the run is over, its
exit status. A study can therefore be stopped and started again without losing a job or submitting one twice.
"""

import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transrec.cluster_job import SIGNALLED, ClusterJob
from transrec.command import say
from transrec.errors import TransrecError, about_file
from transrec.studies.study import Job
from transrec.studies.workers import LINES_OF_A_FAILURE, Workers, print_line
from transrec.untrusted import read_regular

# A job is told to save this long before its time limit, or after half of its time if that is later.
SECONDS_TO_SAVE = 120
# SLURM may signal a job up to a minute early, and a job that has just started could not save yet.
LEAST_HOURS = 0.05
# How often a job may reach its time limit. A run that has not ended by then makes no progress within one job.
TIMES_OVER_THE_LIMIT = 1000
JOB_VARIABLES = ("SLURM_", "SLURMD_", "SRUN_")
STATUS = "status"
STATUS_BYTES = 16
# The exit status after SIGKILL, as a number because not every system defines the signal.
KILLED = SIGNALLED + 9
SECONDS_UNTIL_ASKED_AGAIN = 60


@dataclass(frozen=True)
class Resources:
    """The resources that each job requests; None: the cluster's default.

    Raises TransrecError if a value is out of range.

    Attributes:
        memory: memory in GiB.
        hours: time limit, at which a job saves and is queued again.
    """

    gpus: int = 1
    cpus: int | None = None
    memory: float | None = None
    hours: float = 24.0
    partition: str | None = None

    def __post_init__(self):
        for name, least in (("gpus", 0), ("cpus", 1), ("hours", LEAST_HOURS)):
            if (value := getattr(self, name)) is not None and not least <= value < math.inf:
                raise TransrecError(f"--job_{name} {value}: must be at least {least}, and finite")
        if self.memory is not None and not 0 < self.memory < math.inf:
            raise TransrecError(f"--job_memory {self.memory:g}: must be above 0, and finite")

    @property
    def summary(self) -> str:
        """The resources as text."""
        parts = [f"{self.gpus} GPU{'' if self.gpus == 1 else 's'}"]
        parts += [f"{self.cpus} CPU{'' if self.cpus == 1 else 's'}"] if self.cpus else []
        parts += [f"{self.memory:g} GiB"] if self.memory else []
        parts += [f"{self.hours:g} hours at a time"]
        return ", ".join(parts + ([f"in {self.partition}"] if self.partition else []))

    def parameters(self, name: str) -> dict[str, Any]:
        """Return submitit's parameters for a job of the given name."""
        minutes = math.ceil(60 * self.hours)
        # srun does not inherit the number of CPUs from its job.
        step = {"slurm_srun_args": [f"--cpus-per-task={self.cpus}"]} if self.cpus else {}
        return step | {
            "name": name,
            "timeout_min": minutes,
            "gpus_per_node": self.gpus or None,
            "cpus_per_task": self.cpus,
            "mem_gb": self.memory,
            "stderr_to_stdout": True,
            "slurm_partition": self.partition,
            "slurm_signal_delay_s": min(SECONDS_TO_SAVE, 30 * minutes),
            "slurm_additional_parameters": {"requeue": True},
        }

    def threads(self, job: Job) -> int | None:
        """Return the number of threads of each process of a run; None if the number of CPUs is not set."""
        processes = int(job.flags.get("nproc", ["1"])[0])
        return max(1, self.cpus // processes) if self.cpus else None


@dataclass(frozen=True)
class Cluster:
    """A system that runs jobs.

    Attributes:
        name: name of submitit's executor.
        listing: command that prints one line per job, with its id first and its name last.
        mark: text that all lines of jobs contain.
        cancel: command that cancels jobs, given their ids.
        seconds: how long a listing is used before it is read again.
        patience: seconds within which a file written by a job becomes visible on all machines.
    """

    name: str
    listing: tuple[str, ...]
    mark: str
    cancel: tuple[str, ...]
    seconds: float
    patience: float

    def check(self, resources: Resources) -> None:
        """Raise TransrecError if submitit, the cluster or the requested partition is missing."""
        try:
            import submitit  # noqa: F401
        except ImportError as error:
            raise TransrecError(
                f"--cluster {self.name}: needs submitit; install it with: pip install 'transrec[cluster]'"
            ) from error
        self.jobs()
        if resources.partition and self.name == "slurm":
            known = sorted({*self._lines(["sinfo", "--all", "--noheader", "--format=%R"])})
            if missing := {*resources.partition.split(",")} - {*known}:
                raise TransrecError(f"--job_partition {min(missing)}: the cluster has {', '.join(known) or 'none'}")

    def jobs(self) -> dict[str, tuple[str, str]]:
        """Return the id and state of each of this user's jobs, by name. Raises TransrecError if the listing fails."""
        # A job's name is the name of its folder, which `ps` shows at the end of the command line.
        lines = [re.split(r"[\s/]+", line) for line in self._lines(self.listing) if self.mark in line]
        return {words[-1]: (words[0], words[1]) for words in lines if len(words) > 1}

    def _lines(self, command: list[str] | tuple[str, ...]) -> list[str]:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except FileNotFoundError as error:
            raise TransrecError(
                f"--cluster {self.name}: there is no {command[0]} here; start the study where jobs can be submitted"
            ) from error
        except subprocess.CalledProcessError as error:
            raise TransrecError(f"--cluster {self.name}: {command[0]} fails ({_last_line(error.stderr)})") from error
        return [line.strip() for line in done.stdout.splitlines()]


CLUSTERS = {
    "slurm": Cluster("slurm", ("squeue", "--me", "--noheader", "--format=%A %T %j"), "", ("scancel",), 10, 30),
    # Runs jobs on this machine, to try out what SLURM would do.
    "local": Cluster("local", ("ps", "-A", "-ww", "-o", "pid=,args="), "submitit.local", ("kill",), 0.5, 2),
}


class Queue:
    """This user's jobs in a cluster, listed at most `Cluster.seconds` ago."""

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self._jobs: dict[str, tuple[str, str]] = {}
        self._read = -math.inf
        self._is_silent = False

    @property
    def jobs(self) -> dict[str, tuple[str, str]]:
        """Id and state of each job, by name. While the cluster does not answer, the last listing is kept."""
        if time.monotonic() > self._read + self.cluster.seconds:
            self._read = time.monotonic()
            try:
                self._jobs = self.cluster.jobs()
                self._is_silent = False
            except TransrecError as error:
                if not self._is_silent:
                    print_line(f"waiting     {error}")
                self._is_silent = True
        return self._jobs

    def add(self, name: str, number: str) -> None:
        """Add a job that has just been submitted."""
        self._jobs[name] = number, "PENDING"


class SubmittedJob:
    """A job in the queue, with the interface of the processes that `Workers` run.

    Args:
        folder: folder of submitit's files for the job, whose name is the job's name.
        result: the file that a successful run writes.
    """

    def __init__(self, queue: Queue, folder: Path, result: Path):
        self.queue, self.folder, self.result = queue, folder, result
        self.pid = queue.jobs[folder.name][0]
        self.returncode: int | None = None
        self._gone_since = math.inf

    def poll(self) -> int | None:
        """Return the run's exit status; None while its job is queued or running."""
        if self.returncode is None:
            if self.folder.name in self.queue.jobs:
                self._gone_since = math.inf
            else:
                self._gone_since = min(self._gone_since, time.monotonic())
                self.returncode = self._end()
        return self.returncode

    @property
    def status(self) -> int | None:
        """The exit status that the job has written; None if it has not written any."""
        try:
            return int(read_regular(self.folder / STATUS, STATUS_BYTES))
        except (OSError, ValueError):
            return None

    def _end(self) -> int | None:
        """Return the exit status of a job that has left the queue; None while its files may not be visible here yet."""
        status = self.status
        # A job that was told to stop may be about to be queued again.
        is_seen = self.result.exists() if status == 0 else status is not None and status <= SIGNALLED
        if is_seen or time.monotonic() > self._gone_since + self.queue.cluster.patience:
            return KILLED if status is None else status
        return None

    def terminate(self) -> None:
        """Have the run save and end."""
        subprocess.run([*self.queue.cluster.cancel, self.pid], capture_output=True)


class ClusterWorkers(Workers):
    """Runs jobs in a cluster, with at most `count` of them in its queue. They stay there when the study is stopped."""

    poll_seconds = 1.0

    def __init__(self, count: int, logs: Path, cluster: Cluster, resources: Resources):
        super().__init__(count, logs)
        self.queue, self.resources = Queue(cluster), resources
        self.folder = logs.parent / "cluster"
        self._not_before = -math.inf

    @property
    def may_leave(self) -> bool:
        return bool(self.stop_signal)

    @property
    def advice(self) -> str:
        if not self.running:
            return "no job is left in the cluster, the same command continues"
        numbers = [process.pid for process, *_ in self.running.values()]
        return (
            "its jobs continue in the cluster, where the same command finds them; to cancel them: "
            f"{shlex.join([*self.queue.cluster.cancel, *numbers])}"
        )

    def _folder_in_cluster(self, job: Job) -> Path | None:
        """Return the folder of a job that is already in the cluster, else None."""
        folders = (self.folder / name for name in self.queue.jobs if name.rpartition("-")[0] == job.folder.name)
        # A job of another study may have the same name except for the random suffix. Its folder is elsewhere.
        return next((folder for folder in folders if folder.is_dir()), None)

    def _runs_alone(self, job: Job) -> bool:
        return not self._folder_in_cluster(job) and super()._runs_alone(job)

    def _launch(self, slot: int, job: Job) -> bool:
        return time.monotonic() > self._not_before and super()._launch(slot, job)

    def _begin(self, slot: int, job: Job) -> SubmittedJob | None:
        if folder := self._folder_in_cluster(job):
            submitted = SubmittedJob(self.queue, folder, job.folder / "result.json")
            print_line(f"job {submitted.pid:<8}{job.name}: is in the cluster already")
            return submitted
        with about_file(self.folder):
            self.folder.mkdir(exist_ok=True)
            # A new folder that only its owner can access, because submitit unpickles the files in it.
            folder = Path(tempfile.mkdtemp(prefix=f"{job.folder.name}-", dir=self.folder))
        try:
            number = self._submit(job, folder)
        except TransrecError as error:
            shutil.rmtree(folder)
            if not self.running:
                raise
            # For instance because the number of queued jobs per user is limited: try again later.
            print_line(f"waiting     {job.name}: {error}")
            self._not_before = time.monotonic() + SECONDS_UNTIL_ASKED_AGAIN
            return None
        self.queue.add(folder.name, number)
        print_line(f"job {number:<8}$ {shlex.join(job.command)}")
        return SubmittedJob(self.queue, folder, job.folder / "result.json")

    def _submit(self, job: Job, folder: Path) -> str:
        """Submit a job and return its id. Raises TransrecError if the cluster does not accept it."""
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        commands = [job.command_with(where) for where in ("--output", "--resume")]
        log, threads = self._log(job), self.resources.threads(job)
        run = ClusterJob(*commands, job.started_marker, log, folder / STATUS, threads)
        executor = submitit.AutoExecutor(
            folder,
            self.queue.cluster.name,
            slurm_max_num_timeout=TIMES_OVER_THE_LIMIT,
            local_max_num_timeout=TIMES_OVER_THE_LIMIT,
        )
        executor.update_parameters(**self.resources.parameters(folder.name))
        try:
            with about_file(folder), _outside_of_jobs():
                number = executor.submit(run).job_id
        except (FailedJobError, FailedSubmissionError) as error:
            raise TransrecError(
                f"the cluster refused a job of {self.resources.summary} ({_last_line(str(error))}); --job_gpus, "
                f"--job_cpus, --job_memory, --job_hours and --job_partition ask for others"
            ) from error
        with about_file(log), open(log, "a", encoding="utf-8") as file:
            file.write(f"job         {number} of {self.queue.cluster.name}\n")
        return number

    def _finish(self, slot: int) -> int:
        process, job, *_ = self.running[slot]
        if process.status is None:
            self._explain(process, job)
        done = super()._finish(slot)
        if done:
            shutil.rmtree(process.folder, ignore_errors=True)
        return done

    def _explain(self, process: SubmittedJob, job: Job) -> None:
        """Append the output of a job that ended without an exit status to the run's log."""
        lines = [
            line
            for path in sorted(process.folder.glob("*_log.out"))
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[1 - LINES_OF_A_FAILURE :]
        ]
        with about_file(self._log(job)), open(self._log(job), "a", encoding="utf-8") as log:
            log.write("".join(f"{line}\n" for line in lines))
            log.write(f"job         {process.pid} was ended by the cluster, or by whoever cancelled it\n")

    def _progress_text(self) -> str:
        states = [self.queue.jobs.get(process.folder.name, ("", "over"))[1] for process, *_ in self.running.values()]
        waiting = states.count("PENDING")
        return f"{len(states) - waiting} run, {waiting} wait for the cluster"

    def _abandon(self) -> None:
        """Leave jobs in the cluster, for the next process that watches them."""
        for *_, lock in self.running.values():
            lock.close()

    def _stop(self, number: int, frame: Any) -> None:
        if not self.stop_signal:
            say("the study stops, its jobs continue ...")
        self.stop_signal = number


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Context in which started jobs do not inherit the variables of the study's own job, and do not get Ctrl-C."""
    hidden = {}
    if "SLURM_JOB_ID" in os.environ:
        names = {name for name in os.environ if name.startswith(JOB_VARIABLES)} - {"SLURM_CONF"}
        hidden = {name: os.environ.pop(name) for name in names}
    # A job on this machine shares the terminal; it inherits the blocked signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        os.environ.update(hidden)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]
