"""Threads that sleep instead of spin while others want the cores: when they do, and that no number changes."""

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
def test_more_threads_than_cores_are_managed_while_the_main_one_waits_for_a_core(two_threads, tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "POLL_SECONDS", 0.05)
    waited, leave = tmp_path / "schedstat", threading.Event()
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    expected = (x @ x).softmax(-1).sum(0)

    def count() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    def tell(nanoseconds: int) -> None:
        # Whole at every moment that the watcher may look.
        (tmp_path / "next").write_text(f"1 {nanoseconds} 1")
        (tmp_path / "next").replace(waited)

    tell(0)
    watcher = threading.Thread(target=threads._watch, args=(waited, leave))
    watcher.start()
    before = count()
    for step in range(1, 4):
        tell(step * 10**8)
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
