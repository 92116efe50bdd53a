"""A frozen backbone larger than one card, spread over GPUs, host memory and disk while its states are computed."""

import re
from collections.abc import Sequence
from importlib.util import find_spec

from torch import nn

from transrec.errors import TransrecError

BOUND = re.compile(r"(cpu|mps|\d+)=(\d+(?:\.\d+)?)(MiB|GiB)")
UNITS = {"MiB": 2**20, "GiB": 2**30}


def bounds(given: Sequence[str]) -> dict[str | int, int]:
    """Bytes that a backbone may take of each device: "0=20GiB", of the first GPU, or "cpu=8GiB", of host memory.

    Raises TransrecError for what says something else, or names a device twice.
    """
    found: dict[str | int, int] = {}
    for one in given:
        match = BOUND.fullmatch(one)
        device = None if match is None else int(match[1]) if match[1].isdigit() else match[1]
        if match is None or device is None or device in found:
            raise TransrecError(f"--max_memory {one}: give each device once, as in --max_memory 0=20GiB cpu=8GiB")
        found[device] = int(float(match[2]) * UNITS[match[3]])
    return found


def check_accelerate() -> None:
    """Raise TransrecError where accelerate is not installed."""
    if find_spec("accelerate") is None:
        raise TransrecError("--device_map: needs accelerate; install it with: pip install 'transrec[large]'")


def is_spread(backbone: nn.Module) -> bool:
    """Whether it lies on several devices, or on disk, from where its layers fetch their weights when they run."""
    return any(hasattr(module, "_hf_hook") for module in backbone.modules())
