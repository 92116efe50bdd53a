"""Running a study: several jobs at a time, beside other processes that work on the same study."""

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


def tell(text: str) -> None:
    """Print a line between the bars."""
    tqdm.write(printable(text))


class Workers:
    """Runs jobs, `count` at a time, each with its share of the machine's GPUs or CPU threads."""

    poll_seconds = 0.2

    def __init__(self, count: int, logs: Path):
        self.count, self.logs = count, logs
        self.running: dict[int, tuple[subprocess.Popen, Job, float, Lock]] = {}
        self.failed: list[Job] = []
        self.again: list[Job] = []
        # Runs that have been told that they may stop: a second time would be taken as impatience.
        self.stopped: set[int] = set()
        self.elsewhere: set[Path] = set()
        self.stop_signal = 0

    @property
    def may_leave(self) -> bool:
        """Whether nothing is left to do after a signal to stop."""
        return bool(self.stop_signal) and not self.running

    @property
    def advice(self) -> str:
        """What to say after a signal to stop."""
        return THE_RUNS_SAVED

    def run(self, study: Study) -> None:
        """Run all that is not done; tables are rewritten after each. Raises Interrupted after SIGINT or SIGTERM."""
        waiting = [job for job in study.jobs if not job.is_done]
        old = {number: signal.signal(number, self._stop) for number in STOP_SIGNALS}
        bar = Bar(total=len(study.jobs), initial=len(study.jobs) - len(waiting), unit="run", desc="study")
        try:
            while not self.may_leave:
                new = [] if self.stop_signal else study.more()
                bar.total += len(new)
                waiting = [*self.again, *waiting, *new]
                self.again.clear()
                if not waiting and not self.running:
                    break
                waiting, done = ([], 0) if self.stop_signal else self._start(waiting)
                if done:
                    bar.update(done)
                    study.write_tables()
                bar.set_postfix_str(self._doing()[:60])
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
        """Start what can be started; returns what still waits, and how many runs another process has done."""
        later, done = [], 0
        for job in waiting:
            free = next((slot for slot in range(self.count) if slot not in self.running), None)
            if job.start in self.failed:
                self.failed.append(job)
                tell(f"left out    {job.name}: needs {job.start.name}, which failed")
            elif not job.is_wanted:
                continue
            elif free is None or not (job.start is None or job.start.is_done):
                later.append(job)
            elif self._launch(free, job):
                # Only what has been seen to run elsewhere can be done: it was not when this process began.
                done += job.is_done
            else:
                later.append(job)
        return later, done

    def _stop_finished(self) -> None:
        """Stop runs of which no more is wanted."""
        for process, job, *_ in self.running.values():
            if process.pid not in self.stopped and job.may_stop:
                process.terminate()
                self.stopped.add(process.pid)

    def _launch(self, slot: int, job: Job) -> bool:
        """Start a job, unless it is done by now; False where it has to wait, as while another process runs it."""
        lock = self._take(job)
        if lock is None:
            if job.folder not in self.elsewhere:
                self.elsewhere.add(job.folder)
                tell(f"waiting     {job.name}: another process runs it")
            return False
        if job.is_done:
            lock.close()
            tell(f"done        {job.name}, by another process")
            return True
        if (process := self._begin(slot, job)) is None:
            lock.close()
            return False
        self.running[slot] = (process, job, time.monotonic(), lock)
        return True

    def _begin(self, slot: int, job: Job) -> subprocess.Popen | None:
        """Start the process of a job; None where there is no room for it now."""
        tell(f"$ {shlex.join(job.command)}")
        with about_file(self._log(job)), open(self._log(job), "ab") as log:
            # A session of its own: Ctrl-C reaches the study alone, which passes it on once.
            return subprocess.Popen(
                job.command, stdout=log, stderr=log, env=self._environment(slot), start_new_session=True
            )

    def _take(self, job: Job) -> Lock | None:
        """A job's lock, which its study holds while it runs; None while another process runs the job."""
        try:
            lock = Lock(self._log(job).with_suffix(".lock"))
        except BlockingIOError:
            return None
        if self._runs_alone(job):
            lock.close()
            return None
        return lock

    def _runs_alone(self, job: Job) -> bool:
        """Whether a job runs unwatched: begun by hand, or by a study that was killed, it holds its folder itself."""
        try:
            if job.folder.is_dir():
                Lock(job.folder / ".lock").close()
        except BlockingIOError:
            return True
        return False

    def _doing(self) -> str:
        """What is being done, for the progress bar."""
        return ", ".join(job.name for _, job, *_ in self.running.values())

    def _abandon(self) -> None:
        """Stop the runs, where the study itself cannot go on."""
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
            tell(f"done        {job.name}: {job.told}, {time.monotonic() - started:.0f} s")
            return 1
        if done is None:
            self.again.append(job)
        else:
            self.failed.append(job)
            last = self._log(job).read_text(encoding="utf-8", errors="replace").splitlines()[-LINES_OF_A_FAILURE:]
            tell(f"failed      {job.name} (status {process.returncode}), {self._log(job)}:")
            for line in last:
                tell(f"  {line}")
        return 0

    def _log(self, job: Job) -> Path:
        return self.logs / f"{job.folder.name}.txt"

    def _stop(self, number: int, frame: Any) -> None:
        if not self.stop_signal:
            say(f"{signal.Signals(number).name}: the runs save and stop ...")
        self.stop_signal = number
        for process, *_ in self.running.values():
            process.send_signal(signal.SIGTERM)
