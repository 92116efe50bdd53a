"""Running a study: several jobs at the same time, next to other processes that work on the same study."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from transrec.command import say
from transrec.cpus import usable_cpus
from transrec.errors import Interrupted, about_file, printable
from transrec.locks import Lock
from transrec.processes import STOP_SIGNALS
from transrec.progress import Bar
from transrec.studies.study import Job, Study

LINES_OF_A_FAILURE = 6
THE_RUNS_SAVED = "the runs have saved, the same command continues"


def print_line(text: str) -> None:
    """Print a line without disturbing progress bars."""
    tqdm.write(printable(text))


class Workers:
    """Runs up to `count` jobs at the same time, each with its share of the machine's GPUs or CPU threads."""

    poll_seconds = 0.2

    def __init__(self, count: int, logs: Path):
        self.count, self.logs = count, logs
        self.running: dict[int, tuple[subprocess.Popen, Job, float, Lock]] = {}
        self.failed: list[Job] = []
        self.to_retry: list[Job] = []
        # Processes that have been asked to stop. They must not be asked twice: a second signal would stop them at once.
        self.stopped: set[int] = set()
        self.run_elsewhere: set[Path] = set()
        self.stop_signal = 0

    @property
    def may_leave(self) -> bool:
        """Whether nothing is left to do after a stop signal."""
        return bool(self.stop_signal) and not self.running

    @property
    def advice(self) -> str:
        """The message to print after a stop signal."""
        return THE_RUNS_SAVED

    def run(self, study: Study) -> None:
        """Run all jobs that are not done and rewrite the tables after each. Raises Interrupted on SIGINT or SIGTERM."""
        waiting = [job for job in study.jobs if not job.is_done]
        old = {number: signal.signal(number, self._stop) for number in STOP_SIGNALS}
        bar = Bar(total=len(study.jobs), initial=len(study.jobs) - len(waiting), unit="run", desc="study")
        try:
            while not self.may_leave:
                new = [] if self.stop_signal else study.new_jobs()
                bar.total += len(new)
                waiting = [*self.to_retry, *waiting, *new]
                self.to_retry.clear()
                if not waiting and not self.running:
                    break
                waiting, done = ([], 0) if self.stop_signal else self._start(waiting)
                if done:
                    bar.update(done)
                    study.write_tables()
                bar.set_postfix_str(self._progress_text()[:60])
                time.sleep(self.poll_seconds)
                self._stop_finished()
                for slot in [slot for slot, (process, *_) in self.running.items() if process.poll() is not None]:
                    bar.update(self._finish(slot))
                    study.write_tables()
        finally:
            bar.close()
            self._abandon()
            for number, handler in old.items():
                signal.signal(number, handler)
        if self.stop_signal:
            raise Interrupted(self.stop_signal, self.advice)

    def _start(self, waiting: list[Job]) -> tuple[list[Job], int]:
        """Start the jobs that can start; return the jobs that still wait and the number of jobs done elsewhere."""
        later, done = [], 0
        for job in waiting:
            free = next((slot for slot in range(self.count) if slot not in self.running), None)
            if job.start in self.failed:
                self.failed.append(job)
                print_line(f"left out    {job.name}: needs {job.start.name}, which failed")
            elif not job.is_wanted:
                continue
            elif free is None or not (job.start is None or job.start.is_done):
                later.append(job)
            elif self._launch(free, job):
                # If the job is done, another process has run it: it was not done when this process began.
                done += job.is_done
            else:
                later.append(job)
        return later, done

    def _stop_finished(self) -> None:
        """Stop the runs that may stop early."""
        for process, job, *_ in self.running.values():
            if process.pid not in self.stopped and job.may_stop:
                process.terminate()
                self.stopped.add(process.pid)

    def _launch(self, slot: int, job: Job) -> bool:
        """Start a job unless it is already done; return False if it has to wait, as while another process runs it."""
        lock = self._take_lock(job)
        if lock is None:
            if job.folder not in self.run_elsewhere:
                self.run_elsewhere.add(job.folder)
                print_line(f"waiting     {job.name}: another process runs it")
            return False
        if job.is_done:
            lock.close()
            print_line(f"done        {job.name}, by another process")
            return True
        if (process := self._begin(slot, job)) is None:
            lock.close()
            return False
        self.running[slot] = (process, job, time.monotonic(), lock)
        return True

    def _begin(self, slot: int, job: Job) -> subprocess.Popen | None:
        """Start the process of a job; return None if there is no room for it now."""
        print_line(f"$ {shlex.join(job.command)}")
        with about_file(self._log(job)), open(self._log(job), "ab") as log:
            # With a session of its own for each run, Ctrl-C reaches only the study, which passes it on once.
            return subprocess.Popen(
                job.command, stdout=log, stderr=log, env=self._environment(slot), start_new_session=True
            )

    def _take_lock(self, job: Job) -> Lock | None:
        """Return a job's lock, which the study holds while the job runs; None while another process runs the job."""
        try:
            lock = Lock(self._log(job).with_suffix(".lock"))
        except BlockingIOError:
            return None
        if self._runs_alone(job):
            lock.close()
            return None
        return lock

    def _runs_alone(self, job: Job) -> bool:
        """Return whether a process started by hand, or left by a killed study, runs the job and locks its folder."""
        try:
            if job.folder.is_dir():
                Lock(job.folder / ".lock").close()
        except BlockingIOError:
            return True
        return False

    def _progress_text(self) -> str:
        """Return the progress bar's text on the jobs that are running."""
        return ", ".join(job.name for _, job, *_ in self.running.values())

    def _abandon(self) -> None:
        """Stop all runs and wait for them, because the study itself ends."""
        for process, *_ in self.running.values():
            process.terminate()
        for process, *_ in self.running.values():
            process.wait()

    def _environment(self, slot: int) -> dict[str, str]:
        environment = dict(os.environ)
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
        if gpus:
            share = max(1, len(gpus) // self.count)
            first = slot * share % len(gpus)
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[first : first + share])
        else:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cpus() // self.count)))
        return environment

    def _finish(self, slot: int) -> int:
        process, job, started, lock = self.running.pop(slot)
        try:
            done = job.end(process.returncode, bool(self.stop_signal))
        finally:
            lock.close()
        if done:
            print_line(f"done        {job.name}: {job.summary}, {time.monotonic() - started:.0f} s")
            return 1
        if done is None:
            self.to_retry.append(job)
        else:
            self.failed.append(job)
            last = self._log(job).read_text(encoding="utf-8", errors="replace").splitlines()[-LINES_OF_A_FAILURE:]
            print_line(f"failed      {job.name} (status {process.returncode}), {self._log(job)}:")
            for line in last:
                print_line(f"  {line}")
        return 0

    def _log(self, job: Job) -> Path:
        return self.logs / f"{job.folder.name}.txt"

    def _stop(self, number: int, frame: Any) -> None:
        if not self.stop_signal:
            say(f"{signal.Signals(number).name}: the runs save and stop ...")
        self.stop_signal = number
        for process, *_ in self.running.values():
            process.send_signal(signal.SIGTERM)
