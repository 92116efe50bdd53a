"""Processes that belong together end together."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import connection, parent_process

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
POLL_SECONDS = 1


def serve_parent(worker: int = 0, ignored: Iterable[signal.Signals] = STOP_SIGNALS) -> None:
    """To be called in a worker of `multiprocessing`: the parent decides when it stops, and it ends with the parent.

    Ctrl-C reaches all processes of a terminal, SIGTERM of SLURM or systemd all of a job: the parent, which saves first,
    needs its workers until then. A parent that is killed cannot end them.
    """
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    _mask_signals("SIG_UNBLOCK")
    threading.Thread(target=_leave_with_parent, daemon=True).start()


@contextmanager
def holding_signals() -> Iterator[None]:
    """Within, SIGINT and SIGTERM are held back, so that a worker started here gets none before `serve_parent`."""
    _mask_signals("SIG_BLOCK")
    try:
        yield
    finally:
        _mask_signals("SIG_UNBLOCK")


def _mask_signals(how: str) -> None:
    # Windows has no such masks, and no such signals from outside either.
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(getattr(signal, how), STOP_SIGNALS)


def _leave_with_parent() -> None:
    if parent := parent_process():
        connection.wait([parent.sentinel])
        os._exit(1)


def watch_parent(parent: int, orphaned: Callable[[], None]) -> None:
    """Call `orphaned`, in a thread, once the process `parent` is no longer the parent of this one."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        orphaned()

    threading.Thread(target=watch, daemon=True).start()
