"""The costs and the environment of a run: parameters, seconds, memory, versions and hardware."""

import platform
import subprocess
import sys
import time
from typing import Any

import torch
import transformers
from torch import nn

import transrec
from transrec.methods import TrainableGroup
from transrec.models.quantised import is_quantised, packed_parameters
from transrec.paths import REPOSITORY

try:
    from resource import RUSAGE_SELF, getrusage
except ImportError:
    # Windows.
    getrusage = None


class Clock:
    """Measures the seconds spent in each phase of training steps.

    A GPU works asynchronously. If `exact` is false, its seconds are attributed to the phase in which the program
    happens to wait for it; if true, the clock synchronises at every change of phase. CPU seconds are always exact.
    """

    def __init__(self, device: torch.device, exact: bool):
        self.wait = exact and device.type != "cpu"
        self.device = device
        self.seconds: dict[str, float] = {}
        self._phase: str | None = None
        self._since = 0.0

    def enter(self, phase: str | None) -> None:
        """Begin a phase; None: the work that follows is not counted."""
        if self.wait:
            torch.accelerator.synchronize(self.device)
        now = time.perf_counter()
        if self._phase is not None:
            self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak device memory of this process in MiB, or 0 if the system does not report it.

    On a GPU this is the allocated memory, on the CPU the resident set size.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type == "mps":
        # MPS reports no peak. The memory that its driver has allocated is used instead: the driver does not free it.
        return torch.mps.driver_allocated_memory() / 2**20
    if getrusage is None:
        return 0.0
    peak = getrusage(RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def parameter_table(
    module: nn.Module, groups: list[TrainableGroup], left_out: dict[str, int] | None = None
) -> list[dict[str, Any]]:
    """Return one row for each module and parameter group, or "frozen", with parameter count and learning rate.

    Args:
        left_out: number of parameters of each backbone that cached states replace, by the modality that it reads.
    """
    group_of = {name: group for group in groups for name in group.parameters}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        part = _part(name)
        group = group_of.get(name)
        key = (part, group.name if group else "frozen")
        row = rows.setdefault(key, {"module": part, "what": key[1], "parameters": 0, "lr": group.lr if group else None})
        row["parameters"] += parameter.numel()
    for name, part in module.named_modules():
        if is_quantised(part):
            rows[_part(name), "frozen"]["parameters"] += packed_parameters(part)
    absent = [
        {"module": f"item_encoder.{content}", "what": "cached", "parameters": count, "lr": None}
        for content, count in (left_out or {}).items()
    ]
    return [*rows.values(), *absent]


def _part(name: str) -> str:
    """Return the part of a recommender that a table of parameters names, for the name of a module or a parameter."""
    return ".".join(name.split(".")[: 2 if name.startswith("item_encoder") else 1])


def parameter_totals(table: list[dict[str, Any]]) -> tuple[int, int]:
    """Return the numbers of trainable parameters and of all parameters in a `parameter_table`."""
    trainable = sum(row["parameters"] for row in table if row["lr"] is not None)
    return trainable, sum(row["parameters"] for row in table)


def device_name(device: torch.device) -> str:
    """Return the name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{'Apple GPU' if device.type == 'mps' else 'cpu'} ({platform.machine()})"


def environment(device: torch.device, ranks: int) -> dict[str, Any]:
    """Return versions, commit and hardware, for the result of a run."""
    return {
        "transrec": transrec.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "processes": ranks,
    }


def _commit() -> str | None:
    """Return what `git describe --dirty` prints, without locking the index, in case someone wants to commit."""

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()

    try:
        name = git("describe", "--always", "--abbrev=12")
        return name + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
