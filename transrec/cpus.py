"""Counts the CPUs that this process may use. Imports nothing slow, because this happens before torch is imported."""

import math
import os
from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_CONTROL_GROUPS = Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """Return how many CPUs this process may run on, within its control groups' quotas, rounded down; at least 1."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:
        # macOS and Windows provide only the total.
        allowed = os.cpu_count() or 1
    return max(1, math.floor(min([allowed, *map(_quota, _control_groups())])))


def _control_groups() -> list[Path]:
    """Return the control groups that may limit this process's CPU time, and their parents; none except on Linux."""
    try:
        lines = OWN_CONTROL_GROUPS.read_text().splitlines()
    except OSError:
        return []
    groups = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        # Version 2 has one tree for all controllers, version 1 has one tree for each.
        if not controllers or "cpu" in controllers.split(","):
            root = CONTROL_GROUPS / "cpu" if controllers else CONTROL_GROUPS
            # In a container, its own group may be mounted as the root although its name is that on the host.
            group = root / name.lstrip("/")
            groups += [group, *(parent for parent in group.parents if parent.is_relative_to(root))]
    return groups


def _quota(group: Path) -> float:
    """Return how many CPUs a control group may keep busy; infinity if it sets no limit."""
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            quota, period = (int(word) for name in names for word in (group / name).read_text().split())
        except (OSError, ValueError):
            # No such file, or no limit: "max".
            continue
        if quota > 0 and period > 0:
            return quota / period
    return math.inf
