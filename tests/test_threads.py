"""Threads that sleep instead of spinning while other programs want the cores: when they do, with the same numbers."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from transrec.training import threads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def until(reached) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux tells how long a thread waits for a core")
def test_more_threads_than_cores_are_managed_while_others_want_the_cores(two_threads, monkeypatch):
    monkeypatch.setattr(threads, "POLL_SECONDS", 0.05)
    counters, leave = [0.0, 0.0], threading.Event()
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    expected = (x @ x).softmax(-1).sum(0)

    def count() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    watcher = threading.Thread(target=threads._watch, args=(lambda: tuple(counters), leave))
    watcher.start()
    before = count()
    for _ in range(4):
        # The process's own threads wait for one another, on cores that no other program wants.
        counters[0] += 0.1
        time.sleep(0.06)
    assert count() == before
    for _ in range(4):
        counters[:] = [counters[0] + 0.1, counters[1] + 0.1]
        time.sleep(0.06)
    until(lambda: count() > before)
    assert torch.equal((x @ x).softmax(-1).sum(0), expected)
    until(lambda: count() == before)
    leave.set()
    watcher.join()


def test_one_thread_needs_no_watching(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    before = threading.active_count()
    with threads.considerate():
        assert threading.active_count() == before


@pytest.mark.skipif(not threads.CORES.exists(), reason="only Linux tells for how long each core worked")
def test_what_others_take_of_the_cores():
    cores = len(os.sched_getaffinity(0))
    counting = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * cores)]
    try:
        time.sleep(0.3)
        before, started = threads._seconds_of_others(), time.monotonic()
        while time.monotonic() < started + 0.5:
            sum(range(1000))
        taken, seconds = threads._seconds_of_others() - before, time.monotonic() - started
    finally:
        for program in counting:
            program.kill()
            program.wait()
    # All of the cores' time except what this process itself had.
    assert 0.4 * seconds * cores < taken < seconds * cores + 0.05
