"""Distributed ranks: joining them, communication among them, and naming ranks that do not answer."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from itertools import count
from typing import cast

import torch
from torch import Tensor, distributed

from transrec.command import say
from transrec.errors import TransrecError
from transrec.options import RunOptions
from transrec.processes import watch_parent
from transrec.training.launcher import HOST, JOINED, LAUNCHER, STORE_PORT

TIMEOUT = RunOptions.timeout
BEAT_SECONDS = 1
ROLL_CALL_SECONDS = 5
SECONDS_TO_SAVE = 6
_leaving = threading.Event()
_beats: list[threading.Thread] = []


@dataclass(frozen=True)
class World:
    """The ranks of this run and this process's place among them.

    Attributes:
        timeout: seconds that a rank waits for another rank before it treats that rank as silent.
        store: key-value store that the ranks share; None for a single rank.
        host_group: process group for communication on the CPU, which does not make the accelerator wait.
    """

    rank: int
    size: int
    device: torch.device
    timeout: float = TIMEOUT
    store: distributed.Store | None = None
    host_group: distributed.ProcessGroup | None = None
    _waits: Iterator[int] = field(default_factory=count, compare=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.any(False)

    def patient_barrier(self) -> None:
        """Wait for all ranks, however long their work takes, as long as their processes are alive.

        Raises TransrecError, naming the rank, if a rank has shown no sign of life for `timeout` seconds.
        """
        store = self.store
        if store is None:
            return
        arrived = f"arrived/{next(self._waits)}"
        store.set(f"{arrived}/{self.rank}", "")
        waiting = [rank for rank in range(self.size) if rank != self.rank]
        seen: dict[int, tuple[bytes, float]] = {}
        while waiting := [rank for rank in waiting if not store.check([f"{arrived}/{rank}"])]:
            for rank in waiting:
                beat = store.get(_beat_of(rank))
                if rank not in seen or seen[rank][0] != beat:
                    seen[rank] = (beat, time.monotonic())
                elif time.monotonic() - seen[rank][1] > self.timeout:
                    raise self._silence_error([rank])
            time.sleep(0.1)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum the tensors of all ranks in place, and return the sum."""
        if self.size > 1:
            if tensor.is_cuda:
                # Here a missing rank can be reported; waiting for it on the accelerator would end in an abort.
                self.barrier()
            distributed.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true on any rank."""
        if self.size == 1:
            return flag
        total = torch.tensor(int(flag))
        distributed.all_reduce(total, group=self.host_group)
        return bool(total)

    @contextmanager
    def naming_silent_ranks(self) -> Iterator[None]:
        """Context in which failed communication raises a TransrecError that names the ranks that do not answer."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _is_communication_error(error):
                raise
            raise self._silence_error(self._missing_ranks()) from error

    def _missing_ranks(self) -> list[int]:
        """Return the ranks that do not answer a roll call, which all ranks that noticed a failure answer."""
        if (store := self.store) is None:
            return []
        with suppress(RuntimeError):
            store.set(f"answered/{self.rank}", "")
            absent = [rank for rank in range(self.size) if rank != self.rank]
            deadline = time.monotonic() + ROLL_CALL_SECONDS
            while absent and time.monotonic() < deadline:
                absent = [rank for rank in absent if not store.check([f"answered/{rank}"])]
                time.sleep(0.1)
            return absent
        return []

    def _silence_error(self, ranks: list[int]) -> TransrecError:
        who = f"process {', '.join(map(str, ranks))} of {self.size} does" if ranks else "the other processes do"
        return TransrecError(
            f"{who} not answer (--timeout {self.timeout:g} seconds): stopped, killed or cut off, see its own messages; "
            f"what was saved can be continued with --resume, and a slow one be given a larger --timeout"
        )


def _beat_of(rank: int) -> str:
    return f"beat/{rank}"


def _is_communication_error(error: RuntimeError) -> bool:
    # gloo has no error class of its own.
    text = str(error)
    return isinstance(error, distributed.DistError) or any(
        word in text for word in ("gloo", "Connection closed by peer", "Timed out waiting", "Connection reset by peer")
    )


def start(device: str, deterministic: bool = True, timeout: float = TIMEOUT) -> World:
    """Join the ranks that --nproc or torchrun started, or return a world of one rank.

    Args:
        device: "auto" (a GPU if there is one; an Apple GPU only for a single process), or a torch device.
        deterministic: make a GPU compute the same numbers from the same options; the CPU always does.
        timeout: seconds to wait for another rank.

    Raises TransrecError if the device does not exist.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    name = _accelerator(size) if device == "auto" else device
    try:
        chosen = torch.device(name)
        if chosen.type == "cuda":
            available = torch.cuda.device_count()
            chosen = torch.device("cuda", local_rank if size > 1 or chosen.index is None else chosen.index)
            # All processes check the same condition, so that none waits for a process that gave up.
            if max(chosen.index + 1, int(os.environ.get("LOCAL_WORLD_SIZE", 1))) > available:
                raise RuntimeError(f"this machine has {available} GPUs")
            torch.cuda.set_device(chosen)
        if chosen.type == "mps" and size > 1:
            raise RuntimeError("an Apple GPU takes one process")
        torch.empty(0, device=chosen)
    except (NotImplementedError, ImportError) as error:
        # The error is left out: it may list everything that torch supports elsewhere, in over a hundred lines.
        raise TransrecError(f"--device {device}: torch has none here; use --device cpu") from error
    except (RuntimeError, AssertionError) as error:
        raise TransrecError(f"--device {device}: {error}; use --device cpu or fewer processes") from error
    if chosen.type == "cuda" and deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    alone = World(rank, size, chosen, timeout)
    return _join(alone) if size > 1 else alone


@cache
def _join(alone: World) -> World:
    rank, size, device = alone.rank, alone.size, alone.device
    patience = timedelta(seconds=alone.timeout)
    watch_parent(int(os.environ.get(LAUNCHER, os.getppid())), _leave_orphaned)
    if port := os.environ.get(STORE_PORT):
        store: distributed.Store = distributed.TCPStore(HOST, int(port), is_master=False, timeout=patience)
    else:
        store, _, _ = next(distributed.rendezvous("env://", rank, size, timeout=patience))
    store.set(_beat_of(rank), "0")
    store.set(f"{JOINED}/{rank}", "")
    _beats.append(threading.Thread(target=_beat, args=(store, rank), daemon=True))
    _beats[-1].start()
    groups = distributed.PrefixStore("groups", store)
    on_gpu = device.type == "cuda"
    # Waiting on the host must time out first, because it can report the error; NCCL can only abort.
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=groups,
        rank=rank,
        world_size=size,
        timeout=2 * patience if on_gpu else patience,
    )
    # All ranks belong to this group, so new_group returns a real group and not the placeholder for non-members.
    host_group = distributed.new_group(backend="gloo", timeout=patience) if on_gpu else None
    return World(rank, size, device, alone.timeout, store, cast(distributed.ProcessGroup | None, host_group))


def _beat(store: distributed.Store, rank: int) -> None:
    """Show the other ranks that this process is alive, until the store disappears with the launcher."""
    with suppress(RuntimeError):
        for number in count(1):
            if _leaving.wait(BEAT_SECONDS):
                return
            store.set(_beat_of(rank), str(number))


def _leave_orphaned() -> None:
    """Save if possible and exit: the launcher that could stop the ranks is gone."""
    say("the process that started this one is gone: leaving")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_SAVE)
    os._exit(128 + signal.SIGTERM)


def _accelerator(size: int) -> str:
    """Return the type of this machine's GPU if `size` processes can use it, else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    # Apple GPUs do not support communication between processes.
    return "mps" if size == 1 and torch.backends.mps.is_available() else "cpu"


@contextmanager
def only_deterministic_algorithms() -> Iterator[None]:
    """Context in which an operation without a deterministic algorithm raises a TransrecError that names it."""
    try:
        yield
    except RuntimeError as error:
        name, _, rest = str(error).partition(" ")
        if not rest.startswith("does not have a deterministic implementation"):
            raise
        raise TransrecError(
            f"{name}: this device cannot compute it so that it gives the same numbers each time; add --deterministic "
            f"false, and numbers will differ in their last digits from run to run"
        ) from error


def stop() -> None:
    """Leave the ranks."""
    # A thread that is still using the store when Python exits would abort the process.
    _leaving.set()
    for thread in _beats:
        thread.join(BEAT_SECONDS)
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
