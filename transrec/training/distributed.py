"""Ranks: starting them, and the few things they tell each other."""

import os
import sys
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from transrec.errors import TransrecError


@dataclass(frozen=True)
class World:
    """The ranks of this run and this process's place among them."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            distributed.barrier()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all ranks' tensors, in place."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether any rank says so. Goes over the CPU, so that no accelerator has to wait."""
        return bool(self.sum(torch.tensor(int(flag)))) if self.size > 1 else flag


def relaunch(processes: int) -> None:
    """Replace this process by torchrun running the same command in that many processes; return if already under it."""
    if processes == 1 or "LOCAL_RANK" in os.environ:
        return
    # Results depend on the number of threads in the last bits, speed on their not outnumbering the cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    sys.stdout.flush()
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    os.execv(sys.executable, [sys.executable, *launcher, *without_flag(sys.argv, "--nproc")])


def without_flag(arguments: list[str], name: str) -> list[str]:
    """The arguments less `name VALUE` and `name=VALUE`; torchrun would take --nproc for an abbreviation of its own."""
    kept, skip = [], False
    for argument in arguments:
        if not (skip or argument == name or argument.startswith(f"{name}=")):
            kept.append(argument)
        skip = argument == name
    return kept


def start(device: str, deterministic: bool = True) -> World:
    """Join the ranks that torchrun started, or be alone.

    Args:
        device: "auto" (a GPU where there is one), or a torch device.
        deterministic: have a GPU compute the same numbers from the same options; the CPU always does.

    Raises TransrecError for a device that is not there.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        chosen = torch.device(name)
        if chosen.type == "cuda":
            available = torch.cuda.device_count()
            chosen = torch.device("cuda", local_rank if size > 1 or chosen.index is None else chosen.index)
            # Asked of all processes alike, so that none waits for another that gave up.
            if max(chosen.index + 1, int(os.environ.get("LOCAL_WORLD_SIZE", 1))) > available:
                raise RuntimeError(f"this machine has {available} GPUs")
            torch.cuda.set_device(chosen)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise TransrecError(f"--device {device}: {error}; use --device cpu or fewer processes") from error
    if chosen.type == "cuda" and deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    if size > 1 and not distributed.is_initialized():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    return World(rank, size, chosen)


def stop() -> None:
    """Leave the ranks."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
