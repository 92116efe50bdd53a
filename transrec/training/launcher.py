"""Starts the processes of a run on this machine. They end together, with one message and one exit status."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

from torch.distributed import TCPStore

from transrec.cpus import usable_cpus
from transrec.errors import Interrupted, TransrecError
from transrec.processes import STOP_SIGNALS

HOST = "127.0.0.1"
# Environment variables that give a started process the port of the shared store and the id of its launcher.
STORE_PORT, LAUNCHER = "TRANSREC_STORE_PORT", "TRANSREC_LAUNCHER"
JOINED = "joined"
POLL_SECONDS = 0.1
SECONDS_TO_FOLLOW = 60


def launch(processes: int) -> None:
    """Run this same command in the given number of processes and exit with their exit status.

    Returns at once for a single process, and in processes that this function or torchrun has started.

    Raises:
        TransrecError: a process was killed.
        Interrupted: a signal arrived before all processes had begun.
    """
    if processes == 1 or "LOCAL_RANK" in os.environ:
        return
    sys.stdout.flush()
    _Launch(processes).run()


class _Launch:
    def __init__(self, processes: int):
        self.store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
        # The number of threads affects the last bits of results; more threads than cores would slow training down.
        threads = {"OMP_NUM_THREADS": str(max(1, usable_cpus() // processes))}
        shared = {STORE_PORT: str(self.store.port), LAUNCHER: str(os.getpid())}
        shared |= {name: str(processes) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
        self.environments = [
            threads | os.environ | shared | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
            for rank in range(processes)
        ]
        self.children: list[subprocess.Popen] = []
        self.stopped: Interrupted | None = None

    def run(self) -> None:
        try:
            status = None
            while status is None:
                try:
                    status = self._step()
                except Interrupted as stop:
                    self._pass_on(stop)
        finally:
            for child in self.children:
                child.kill()
                child.wait()
        # If all processes had already finished when the signal arrived, the run is complete.
        sys.exit(128 + self.stopped.signal_number if self.stopped and status else status)

    def _step(self) -> int | None:
        """Start the next process or check the running ones; return the exit status once it is known, else None."""
        if len(self.children) < len(self.environments):
            environment = self.environments[len(self.children)]
            # With a session of its own for each child, Ctrl-C reaches only this process, which passes it on once.
            command = [sys.executable, *sys.orig_argv[1:]]
            self.children.append(subprocess.Popen(command, env=environment, start_new_session=True))
            return None
        time.sleep(POLL_SECONDS)
        ended = [(rank, child.returncode) for rank, child in enumerate(self.children) if child.poll() is not None]
        if len(ended) == len(self.children) and not any(status for _, status in ended):
            return 0
        failed = [(rank, status) for rank, status in ended if status]
        if not failed:
            return None
        # Processes that were asked to stop exit one after the other. After any other failure there is no need to wait.
        if all(status in {128 + number for number in STOP_SIGNALS} for _, status in failed):
            deadline = time.monotonic() + SECONDS_TO_FOLLOW
            while any(child.poll() is None for child in self.children) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        rank, status = failed[0]
        if status < 0 and not self.stopped:
            error = TransrecError(
                f"process {rank} of {len(self.children)} was killed by {signal.Signals(-status).name}, perhaps for "
                f"lack of memory; the others were stopped, what was saved can be continued with --resume"
            )
            error.exit_status = 128 - status
            raise error
        return status

    def _pass_on(self, stop: Interrupted) -> None:
        """Have the processes save and exit. Raises Interrupted if there is nothing to save, and on a second signal."""
        begun = len(self.children) == len(self.environments) and self.store.check(
            [f"{JOINED}/{rank}" for rank in range(len(self.children))]
        )
        if self.stopped or not begun:
            raise stop
        self.stopped = stop
        for child in self.children:
            with suppress(ProcessLookupError):
                child.send_signal(stop.signal_number)
