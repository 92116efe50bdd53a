"""OpenMP threads that share cores: they spin while no other process wants the cores, and sleep while one does.

torch's operations end in barriers at which GNU's OpenMP spins for milliseconds, which is fastest if the cores are idle
otherwise. If other processes want the cores, spinning takes the time that the awaited thread needs, and a run of small
operations becomes tens of times slower. At every barrier the library checks whether it manages more threads than there
are cores, and if so, it sleeps early. A thread that opens one parallel region and then waits raises the number of
managed threads above that limit. Each thread still computes the same part of the work, so no number changes.
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
# Shares of the time in which the main thread waits for a core while other processes compute. Above CONTENDED, others
# want the cores. Once the share has been below QUIET for QUIET_POLLS polls in a row, they no longer do.
CONTENDED, QUIET, QUIET_POLLS = 0.08, 0.02, 5
CORES = Path("/proc/stat")
# Columns of /proc/stat with the ticks that a core worked: user, nice, system, irq, softirq and steal.
BUSY = (1, 2, 3, 6, 7, 8)
# Number of elements large enough for torch to divide the work among all threads.
PARALLEL_ELEMENTS = 2**20


class _Surplus:
    """Idle threads whose only purpose is to raise the number of threads that OpenMP manages."""

    def __init__(self):
        # In libgomp a caller's first parallel region adds its threads, without the caller itself, to the managed ones.
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
    """Context with at most one thread per usable CPU, in which threads sleep while other processes want the CPUs.

    A single thread never spins. If the system does not report how long a thread waits for a CPU, as outside Linux,
    threads always spin.
    """
    # Setting the number, even to its current value, makes MKL divide small products among all threads, which is slower.
    if torch.get_num_threads() > usable_cpus():
        torch.set_num_threads(usable_cpus())
    waited = Path(f"/proc/self/task/{threading.main_thread().native_id}/schedstat")
    if torch.get_num_threads() == 1 or not (waited.exists() and CORES.exists()):
        yield
        return
    leave = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(lambda: (_seconds_waited(waited), _seconds_of_others()), leave), daemon=True
    )
    watcher.start()
    try:
        yield
    finally:
        leave.set()
        watcher.join()


def _watch(seconds: Callable[[], tuple[float, float]], leave: threading.Event) -> None:
    """Keep surplus threads while other processes want the cores.

    `seconds` returns how long the main thread has waited for a core, and how long other processes have computed on this
    process's cores. Neither number suffices alone: the process's own threads also wait for one another, and other
    processes may be using cores that are idle anyway.
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


def _seconds_waited(schedstat: Path) -> float:
    return int(schedstat.read_text().split()[1]) / 1e9


def _seconds_of_others() -> float:
    """Return the seconds that other processes have computed on the cores that this process may use."""
    own = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    lines = [line.split() for line in CORES.read_text().splitlines()]
    ticks = sum(int(line[column]) for line in lines if line[:1] and line[0] in own for column in BUSY)
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()
