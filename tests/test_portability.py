"""Where transrec runs: the CPUs it may use, and systems that lack what Linux has."""

import os

import pytest

from transrec import cpus


@pytest.fixture
def sixteen_cpus(monkeypatch, tmp_path):
    """A machine of 16 CPUs whose control groups lie in the returned folder; `own` in it names this process's."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(cpus, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(cpus, "OWN_CONTROL_GROUPS", tmp_path / "own")
    return tmp_path


def test_cpus_are_those_of_the_affinity(sixteen_cpus, monkeypatch):
    assert cpus.usable_cpus() == 16
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7})
    assert cpus.usable_cpus() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cpus.usable_cpus() == 16, "macOS and Windows have no affinity to ask for"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/", {"cpu.max": "400000 100000"}, 4),
        ("0::/", {"cpu.max": "max 100000"}, 16),
        ("0::/", {"cpu.max": "250000 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "9900000 100000"}, 16),
        ("0::/job/step", {"job/step/cpu.max": "max 100000", "job/cpu.max": "300000 100000"}, 3),
        ("0::/job/step", {"job/step/cpu.max": "200000 100000", "job/cpu.max": "300000 100000"}, 2),
        # In a container: the host's name of the group that is the root here.
        ("0::/docker/1f2e", {"cpu.max": "500000 100000"}, 5),
        ("0::/../other", {"cpu.max": "600000 100000"}, 6),
        # Version 1.
        ("3:cpuset:/\n1:cpu:/\n0::/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
        ("4:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "700000", "cpu/a/cpu.cfs_period_us": "100000"}, 7),
        ("0::/", {"cpu.max": "nonsense"}, 16),
    ],
)
def test_cpus_are_what_the_quota_pays_for(sixteen_cpus, own, files, expected):
    (sixteen_cpus / "own").write_text(own + "\n")
    for name, text in files.items():
        path = sixteen_cpus / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert cpus.usable_cpus() == expected
