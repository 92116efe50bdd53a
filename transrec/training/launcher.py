"""Starting the processes of a run on this machine; they end together, with one message and one exit status."""

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
# How a process that was started here knows the store in which they find each other, and who started it.
STORE_PORT, LAUNCHER = "TRANSREC_STORE_PORT", "TRANSREC_LAUNCHER"
JOINED = "joined"
POLL_SECONDS = 0.1
SECONDS_TO_FOLLOW = 60


def launch(processes: int) -> None:
    """Run this same command in that many processes and exit with their exit status.

    Returns at once for a single process, and in one of several that this or torchrun has started.

    Raises:
        TransrecError: a process was killed.
        Interrupted: a signal came before all of them had begun.
    """
    if processes == 1 or "LOCAL_RANK" in os.environ:
        return
    sys.stdout.flush()
    _Launch(processes).run()


class _Launch:
    def __init__(self, processes: int):
        self.store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
        # Results depend on the number of threads in the last bits, speed on their not outnumbering the cores.
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
        # Processes that were done already when the signal came have nothing left undone.
        sys.exit(128 + self.stopped.signal_number if self.stopped and status else status)

    def _step(self) -> int | None:
        """Start a process, or look at those that run; returns the exit status once it is known."""
        if len(self.children) < len(self.environments):
            environment = self.environments[len(self.children)]
            # A session of its own: Ctrl-C reaches this process alone, which passes it on once.
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
        # Processes that were asked to stop leave one after the other; any other end leaves nothing for the rest to do.
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
        """Have the processes save and leave. Raises Interrupted where there is nothing to save, and the second time."""
        begun = len(self.children) == len(self.environments) and self.store.check(
            [f"{JOINED}/{rank}" for rank in range(len(self.children))]
        )
        if self.stopped or not begun:
            raise stop
        self.stopped = stop
        for child in self.children:
            with suppress(ProcessLookupError):
                child.send_signal(stop.signal_number)
