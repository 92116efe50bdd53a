"""Threads that share their cores: OpenMP's spin while nobody else wants the cores, and sleep while somebody does.

torch's operations end in barriers at which GNU's OpenMP spins for milliseconds. On cores of its own that is fastest.
Where other processes want them, the spinning takes the time that the thread waited for would need, and a run of small
operations becomes tens of times slower. The library sleeps early instead whenever it manages more threads than there
are cores, and looks at that at every barrier: a thread that opens one parallel region and then waits brings the number
above it. Which thread computes what stays the same, and so does every number.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from transrec.cpus import usable_cpus

POLL_SECONDS = 1.0
# Shares of the time that the main thread waits for a core while others compute on it: from the first on others want the
# cores, below the second, for so many polls in a row, they no longer do.
CONTENDED, QUIET, QUIET_POLLS = 0.08, 0.02, 5
CORES = Path("/proc/stat")
# Where a line of it tells how long a core worked, in ticks: for users, at low priority, for the system, for interrupts
# of two kinds, and for other virtual machines.
BUSY = (1, 2, 3, 6, 7, 8)
# Enough for torch to divide the work among all threads.
PARALLEL_ELEMENTS = 2**20


class _Surplus:
    """Threads that do nothing but count among those which OpenMP manages."""

    def __init__(self):
        # Of libgomp: those that its first region brings belong to the caller's own count.
        cores, of_each = len(os.sched_getaffinity(0)), torch.get_num_threads() - 1
        self._leave = threading.Event()
        self._threads = [threading.Thread(target=self._stand_by, daemon=True) for _ in range(cores // of_each)]
        for thread in self._threads:
            thread.start()

    def _stand_by(self) -> None:
        torch.zeros(PARALLEL_ELEMENTS).add_(1)
        self._leave.wait()

    def end(self) -> None:
        self._leave.set()
        for thread in self._threads:
            thread.join()


@contextmanager
def considerate() -> Iterator[None]:
    """Within, at most one thread per usable CPU; they sleep rather than spin while other processes want the CPUs.

    A single thread never spins, and where the system does not tell how long a thread waits for a CPU, as outside Linux,
    threads spin as ever.
    """
    # Setting it, even to what it is, makes MKL divide small products among all threads, which takes longer.
    if torch.get_num_threads() > usable_cpus():
        torch.set_num_threads(usable_cpus())
    waited = Path(f"/proc/self/task/{threading.main_thread().native_id}/schedstat")
    if torch.get_num_threads() == 1 or not (waited.exists() and CORES.exists()):
        yield
        return
    leave = threading.Event()
    watcher = threading.Thread(target=_watch, args=(lambda: (_waited(waited), _taken()), leave), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        leave.set()
        watcher.join()


def _watch(seconds: Callable[[], tuple[float, float]], leave: threading.Event) -> None:
    """Hold surplus threads while others want the cores.

    `seconds` tells for how long the main thread has waited for a core, and others have computed on this process's. Each
    alone says nothing: the process's own threads wait for one another, and others may be content with idle cores.
    """
    surplus, quiet = None, 0
    before = seconds()
    while not leave.wait(POLL_SECONDS):
        now = seconds()
        share, before = min(now[0] - before[0], now[1] - before[1]) / POLL_SECONDS, now
        quiet = quiet + 1 if share < QUIET else 0
        if surplus is None and share > CONTENDED:
            surplus = _Surplus()
        elif surplus is not None and quiet >= QUIET_POLLS:
            surplus = surplus.end()
    if surplus is not None:
        surplus.end()


def _waited(schedstat: Path) -> float:
    return int(schedstat.read_text().split()[1]) / 1e9


def _taken() -> float:
    """Seconds that others have computed on the cores that this process may use."""
    own = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    lines = [line.split() for line in CORES.read_text().splitlines()]
    ticks = sum(int(line[column]) for line in lines if line[:1] and line[0] in own for column in BUSY)
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()
