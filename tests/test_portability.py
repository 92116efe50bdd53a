"""Portability: the CPUs that transrec may use, and systems that lack features of Linux."""

import importlib.util
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import types
from functools import partial

import numpy as np
import pytest
import torch
from conftest import BOTH, encoder_flags, fitting, run
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from transrec import cpus, locks
from transrec.data import features, states
from transrec.data.catalog import Tokens
from transrec.data.dataset import find_images, load_dataset
from transrec.data.features import ImageFeatures, MultimodalFeatures, TextFeatures, read_blocks_ahead
from transrec.errors import TransrecError
from transrec.locks import Lock
from transrec.training import distributed, profiler
from transrec.training.precision import Precision


@pytest.fixture
def sixteen_cpus(monkeypatch, tmp_path):
    """A machine of 16 CPUs; its control groups are in the returned folder, where `own` names this process's group."""
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
        # In a container, the file holds the host's name of the group that is the root inside the container.
        ("0::/docker/1f2e", {"cpu.max": "500000 100000"}, 5),
        ("0::/../other", {"cpu.max": "600000 100000"}, 6),
        # Control groups version 1.
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


ELSEWHERE = """
import os, sys
import lmdb, matplotlib.figure, numpy, PIL.Image, safetensors.torch, torch, transformers
from torch.utils.data import DataLoader

for module in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[module] = None
for name in ("sched_getaffinity", "sysconf", "register_at_fork", "posix_fallocate", "fork"):
    delattr(os, name)
opened = os.open

def no_folders(path, flags, *more, **named):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return opened(path, flags, *more, **named)

os.open = no_folders
import pkgutil, transrec
for module in pkgutil.walk_packages(transrec.__path__, "transrec."):
    __import__(module.name)
from transrec import runner
from transrec.training.run import Run
settings = runner.parse(sys.argv[1:], "full", {})
print(runner.execute(settings)["test"]["HR@10"])
"""


def test_without_what_linux_has(flags, tmp_path):
    """Without fcntl, resource and the like, every module can be imported and a run gives the same numbers."""
    ids = fitting([*flags, "--item_tower", "id", "--epochs", "1"])
    command = [sys.executable, "-c", ELSEWHERE, *ids, "--output", str(tmp_path / "elsewhere")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    here = run([*ids, "--output", str(tmp_path / "here")])
    assert not list(tmp_path.glob("*/.lock"))
    assert float(done.stdout.splitlines()[-1]) == here["test"]["HR@10"]


def holding(path) -> subprocess.Popen:
    """Start a process that holds a lock file."""
    code = "import sys, time, pathlib; from transrec.locks import Lock; lock = Lock(pathlib.Path(sys.argv[1]))\n"
    code += "print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_ends_with_its_process(tmp_path):
    path = tmp_path / ".lock"
    with holding(path) as process:
        with pytest.raises(BlockingIOError, match="another process holds it"):
            Lock(path)
        process.send_signal(signal.SIGKILL)
    assert path.exists(), "left behind"
    Lock(path).close()
    assert not path.exists()


def test_one_process_at_a_time(tmp_path):
    """A waiting process may have opened a file that the holder removes; it must not take that file for the lock."""
    count = tmp_path / "count"
    count.write_text("0")
    code = """
import pathlib, sys
from transrec import locks
locks.SECONDS_BETWEEN_TRIES = 1e-4
lock, count = map(pathlib.Path, sys.argv[1:])
for _ in range(200):
    held = locks.Lock(lock, wait=True)
    count.write_text(str(int(count.read_text()) + 1))
    held.close()
"""
    command = [sys.executable, "-c", code, str(tmp_path / ".lock"), str(count)]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert count.read_text() == "800"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_a_lock_that_cannot_be_made(tmp_path):
    with pytest.raises(TransrecError, match=r"nowhere/\.lock: .*No such file or directory"):
        Lock(tmp_path / "nowhere" / ".lock")


def locks_of(monkeypatch, **modules):
    """Return transrec.locks as imported on a system that has only these modules for locking."""
    for name in ("fcntl", "msvcrt"):
        monkeypatch.setitem(sys.modules, name, modules.get(name))
    spec = importlib.util.spec_from_file_location("locks_elsewhere", locks.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_locks_of_windows(tmp_path, monkeypatch):
    held = set()

    def locking(descriptor, mode, length):
        assert (mode, length) == (2, 1)
        if os.fstat(descriptor).st_ino in held:
            raise PermissionError(13, "Permission denied")
        held.add(os.fstat(descriptor).st_ino)

    elsewhere = locks_of(monkeypatch, msvcrt=types.SimpleNamespace(LK_NBLCK=2, locking=locking))
    elsewhere.Lock(tmp_path / ".lock")
    with pytest.raises(BlockingIOError):
        elsewhere.Lock(tmp_path / ".lock")


@pytest.mark.parametrize("error", [OSError(38, "Function not implemented"), OSError(95, "Not supported"), None])
def test_where_no_locks_are_known_none_is_held(tmp_path, monkeypatch, error):
    def flock(descriptor, operation):
        raise error

    fcntl = types.SimpleNamespace(LOCK_EX=2, LOCK_NB=4, flock=flock)
    elsewhere = locks_of(monkeypatch, **({"fcntl": fcntl} if error else {}))
    both = [elsewhere.Lock(tmp_path / ".lock") for _ in range(2)]
    for lock in both:
        lock.close()
    assert not list(tmp_path.iterdir())


def test_workers_that_are_not_forked_read_the_same(domain, monkeypatch):
    """Workers that are spawned (macOS and Windows) receive only the features that read, and nothing of a GPU."""
    store = find_images(domain)
    ids = load_dataset(domain, 6, 5).catalog.ids[:6]
    tokens = Tokens(np.ones((6, 4), np.int32), np.full(6, 4, np.int32))
    text, image = TextFeatures(tokens, np.arange(6)), ImageFeatures(store, ids, workers=1)
    assert not vars(pickle.loads(pickle.dumps(text)))
    expected = [
        read for _, read in read_blocks_ahead([0, 4], 4, 6, MultimodalFeatures([text, ImageFeatures(store, ids)]))
    ]
    context = multiprocessing.get_context("spawn")
    monkeypatch.setattr(features, "DataLoader", partial(DataLoader, multiprocessing_context=context))
    reads = [read for _, read in read_blocks_ahead([0, 4], 4, 6, MultimodalFeatures([text, image]))]
    assert len(reads) == 2
    for (of_text, (pixels,)), (_, (wanted,)) in zip(reads, expected, strict=True):
        assert not of_text and torch.equal(pixels, wanted)


@pytest.fixture
def apple(monkeypatch):
    """A machine on which torch reports an Apple GPU; nothing can be computed on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *size, **named: None)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_auto_is_apples_gpu_where_there_is_one(apple, monkeypatch):
    world = distributed.start("auto")
    assert world.device == torch.device("mps") and not torch.are_deterministic_algorithms_enabled()
    assert Precision("auto", world.device).name == "fp32"
    assert profiler.device_name(world.device).startswith("Apple GPU (")
    assert states._place(10, world.device) in ("cpu", "disk")
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 3 * 2**20)
    assert profiler.peak_memory_mib(world.device) == 3.0
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    profiler.Clock(world.device, exact=True).enter("feed")
    assert waited == [world.device]


def test_several_processes_leave_apples_gpu_alone(apple, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "_join", lambda alone: alone)
    assert distributed.start("auto").device == torch.device("cpu")
    with pytest.raises(TransrecError, match="--device mps: an Apple GPU takes one process; use --device cpu"):
        distributed.start("mps")


@pytest.mark.parametrize("device", ["mps", "xpu", "hpu"])
def test_a_device_that_is_not_there_is_told_in_a_line(device):
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    with pytest.raises(TransrecError, match=f"--device {device}: .*; use --device cpu") as error:
        distributed.start(device)
    assert "\n" not in str(error.value) and len(str(error.value)) < 160


class NoDoubles(TorchDispatchMode):
    """Refuses float64, which Apple's GPU does not support."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor) and value.dtype == torch.float64:
                raise TypeError(f"{function} gives float64")
        return result


@pytest.mark.parametrize(
    ("method", "kind", "objective"),
    [
        ("full", "bert", "cpc"),
        ("compacter", "vit", "bce"),
        ("prompt", "llama", "bce"),
        ("iisan", BOTH, "in_batch"),
    ],
)
def test_a_run_computes_nothing_in_float64(flags, backbones, tmp_path, method, kind, objective):
    more = ["--epochs", "1", "--clip_grad_norm", "1", "--objective", objective, "--output", str(tmp_path)]
    with NoDoubles():
        run([*flags, *encoder_flags(kind, backbones), *more], method)


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_asking_for_the_commit_writes_nothing(tmp_path, monkeypatch):
    """`git describe` would refresh the index under index.lock, so that a simultaneous `git commit` would fail."""

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("text")
    git("add", "file")
    git("commit", "-m", "first")
    monkeypatch.setattr(profiler, "REPOSITORY", tmp_path)
    index = tmp_path / ".git" / "index"
    # Unchanged, but with a time that differs from the index.
    os.utime(tmp_path / "file", (1e9, 1e9))
    before = index.stat()
    commit = profiler._commit()
    assert len(commit) == 12 and (index.stat().st_ino, index.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    (tmp_path / ".git" / "index.lock").touch()
    assert profiler._commit() == commit
    (tmp_path / "file").write_text("other")
    assert profiler._commit() == f"{commit}-dirty"
