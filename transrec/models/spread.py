"""Spreads a frozen backbone larger than one GPU over GPUs, host memory and disk while its states are computed."""

import re
from collections.abc import Sequence
from importlib.util import find_spec

from torch import nn

from transrec.errors import TransrecError

BOUND = re.compile(r"(cpu|mps|\d+)=(\d+(?:\.\d+)?)(MiB|GiB)")
UNITS = {"MiB": 2**20, "GiB": 2**30}


def memory_limits(entries: Sequence[str]) -> dict[str | int, int]:
    """Return how many bytes a backbone may take on each device: "0=20GiB" is the first GPU, "cpu=8GiB" host memory.

    Raises TransrecError for a malformed entry, and for a device that is named twice.
    """
    limits: dict[str | int, int] = {}
    for entry in entries:
        match = BOUND.fullmatch(entry)
        device = None if match is None else int(match[1]) if match[1].isdigit() else match[1]
        if match is None or device is None or device in limits:
            raise TransrecError(f"--max_memory {entry}: give each device once, as in --max_memory 0=20GiB cpu=8GiB")
        limits[device] = int(float(match[2]) * UNITS[match[3]])
    return limits


def check_accelerate() -> None:
    """Raise TransrecError if accelerate is not installed."""
    if find_spec("accelerate") is None:
        raise TransrecError("--device_map: needs accelerate; install it with: pip install 'transrec[large]'")


def is_spread(backbone: nn.Module) -> bool:
    """Return whether a backbone is spread over devices or disk, so that layers fetch their weights when they run."""
    return any(hasattr(module, "_hf_hook") for module in backbone.modules())
