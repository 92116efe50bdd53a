"""Ends the worker processes of a command together with their parent."""

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
    """Let the parent decide when this worker of `multiprocessing` stops, and end the worker when the parent ends.

    Ctrl-C reaches all processes of a terminal, and SIGTERM from SLURM or systemd reaches all processes of a job, but
    the parent needs its workers until it has saved. A parent that is killed cannot end its workers itself.
    """
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    _mask_signals("SIG_UNBLOCK")
    threading.Thread(target=_leave_with_parent, daemon=True).start()


@contextmanager
def holding_signals() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM in the block, so that a worker started there gets none before `serve_parent`."""
    _mask_signals("SIG_BLOCK")
    try:
        yield
    finally:
        _mask_signals("SIG_UNBLOCK")


def _mask_signals(how: str) -> None:
    # Windows has no signal masks, and no other process sends these signals there.
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(getattr(signal, how), STOP_SIGNALS)


def _leave_with_parent() -> None:
    if parent := parent_process():
        connection.wait([parent.sentinel])
        os._exit(1)


def watch_parent(parent: int, orphaned: Callable[[], None]) -> None:
    """Call `orphaned` in a thread once the process `parent` is no longer the parent of this process."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        orphaned()

    threading.Thread(target=watch, daemon=True).start()
