"""Tools to inject faults: runs in separate processes, signals to all of them, small disks, bounded memory."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# One thread each: sums over several threads may round differently, and runs are compared bit by bit.
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))),
}
SECONDS_FOR_A_RUN = 240
SECONDS_TO_END = 10
PAGE = os.sysconf("SC_PAGE_SIZE")
PROGRESS_BAR = re.compile(r"\d+%\|.*\||\d+(block|step|title|image)s? \[|\[\d\d:\d\d")


STARTED: "list[Running]" = []


class Failed(Exception):
    """A case did not end as it must."""


class Skipped(Exception):
    """A case cannot be tried here."""


@dataclass
class Ended:
    """How a process ended.

    Attributes:
        status: as in subprocess: negative after a signal that the process did not catch.
        out, err: standard output and standard error.
    """

    status: int
    out: str
    err: str

    def errors(self) -> list[str]:
        """Return the lines of standard error, without progress bars and warnings."""
        lines = [line.strip() for line in re.split(r"[\r\n]", self.err)]
        return [line for line in lines if line and not PROGRESS_BAR.search(line) and not line.startswith("warning: ")]

    @property
    def is_one_line(self) -> bool:
        """True if the process ended as a user's mistake must: one line `error: ...`, status 2."""
        errors = self.errors()
        return self.status == 2 and len(errors) == 1 and errors[0].startswith("error: ") and not self.traceback

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.out + self.err

    def __str__(self) -> str:
        errors = self.errors()
        return f"status {self.status}, {len(errors)} lines on standard error, the last: {(errors or [''])[-1][:300]!r}"


@dataclass
class Running:
    """A process in its own session, with all processes that it starts."""

    process: subprocess.Popen
    folder: Path

    def family(self) -> list[int]:
        """Return the process and its living descendants, in whatever session they are."""
        parents: dict[int, list[int]] = {}
        for pid, parent in _living():
            parents.setdefault(parent, []).append(pid)
        pids = [self.process.pid]
        for pid in pids:
            pids += parents.get(pid, [])
        return pids

    def ranks(self) -> dict[int, int]:
        """Return the process id of each rank that was started."""
        pids: dict[int, int] = {}
        for pid in self.family()[1:]:
            if (match := re.search(rb"(?:^|\0)RANK=(\d+)", _read(f"/proc/{pid}/environ"))) and b"LOCAL_RANK" in _read(
                f"/proc/{pid}/environ"
            ):
                # A rank's own workers share its environment, but come later.
                pids.setdefault(int(match[1]), pid)
        return pids

    def signal(self, number: int) -> None:
        """Send a signal to every process group of the family, as a cluster's scheduler does."""
        groups = set()
        for pid in self.family():
            try:
                groups.add(os.getpgid(pid))
            except ProcessLookupError:
                continue
        for group in groups:
            try:
                os.killpg(group, number)
            except ProcessLookupError:
                continue

    def kill(self) -> None:
        """Kill all processes of the family at once."""
        while self.process.poll() is None:
            self.signal(signal.SIGKILL)
            time.sleep(0.01)

    def wait(self, seconds: float = SECONDS_FOR_A_RUN) -> Ended:
        """Wait until the process has ended. Raises Failed if it takes longer than `seconds`."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"still running after {seconds:.0f} s; see {self.folder}") from None
        return Ended(status, *((self.folder / name).read_text(errors="replace") for name in ("out", "err")))

    def until(self, reached: Callable[[], bool], seconds: float = SECONDS_FOR_A_RUN) -> None:
        """Wait until a condition is true. Raises Failed if the process ends before, or if it takes too long."""
        deadline = time.monotonic() + seconds
        while not reached():
            if self.process.poll() is not None:
                raise Failed(f"ended before it was reached: {self.wait()}")
            if time.monotonic() > deadline:
                self.kill()
                raise Failed(f"not reached within {seconds:.0f} s; see {self.folder}")
            time.sleep(0.002)


def start(command: list[str], folder: Path, cwd: Path | None = None) -> Running:
    """Start a command; its output goes to files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "out", "w") as out, open(folder / "err", "w") as err:
        (folder / "command").write_text(" ".join(command) + "\n")
        process = subprocess.Popen(
            command, cwd=cwd, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
    STARTED.append(Running(process, folder))
    return STARTED[-1]


def end_all() -> None:
    """End all started processes that still run, when the campaign itself is asked to stop."""
    for running in STARTED:
        running.kill()


def script(path: str, *flags: str) -> list[str]:
    return [sys.executable, str(REPOSITORY / path), *flags]


def alive(pids: list[int]) -> list[int]:
    """Return those of the processes that still run."""
    living = {pid for pid, _ in _living()}
    return [pid for pid in pids if pid in living]


def until_gone(pids: list[int], seconds: float = SECONDS_TO_END) -> None:
    """Wait until all processes have ended; after `seconds`, kill the remaining ones and raise Failed."""
    deadline = time.monotonic() + seconds
    while left := alive(pids):
        if time.monotonic() > deadline:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            raise Failed(f"{len(left)} of {len(pids)} processes still ran {seconds:.0f} s later")
        time.sleep(0.05)


def _living() -> Iterator[tuple[int, int]]:
    """Yield (process, parent) of all processes except zombies."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := _read(f"/proc/{entry}/stat")):
            state, parent = stat.rpartition(b")")[2].split()[:2]
            if state != b"Z":
                yield int(entry), int(parent)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


@contextmanager
def small_disk(folder: Path, pages: int):
    """Make `folder` a disk of `pages` pages within the context. Raises Skipped if no disk can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={max(1, pages) * PAGE}", "tmpfs", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)


def make_room(folder: Path) -> None:
    """Turn a small disk into a large one."""
    (folder / "ballast").unlink(missing_ok=True)
    _mount("-o", "remount,size=256m", str(folder))


def fill(folder: Path) -> None:
    """Leave no page free on the disk of `folder`."""
    free = os.statvfs(folder)
    if free.f_bavail:
        with open(folder / "ballast", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise Skipped(f"no disk can be mounted here: {done.stderr.strip()}")


def pages(path: Path) -> int:
    """Return the number of pages that a file takes."""
    return -(-path.stat().st_size // PAGE)


def in_own_mounts(command: list[str]) -> list[str]:
    """Return the command in its own mount namespace, or unchanged if the system has none."""
    wrapper = ["unshare", "--map-root-user", "--mount"]
    possible = shutil.which("unshare") and subprocess.run([*wrapper, "true"], capture_output=True).returncode == 0
    return [*wrapper, *command] if possible else command


@dataclass
class Launcher:
    """Runs scripts in copies of a process with all imports done: a tenth of a second each instead of five.

    The memory that a copy may take in addition to that process is bounded, so that a file with a false size cannot
    exhaust the machine's memory.
    """

    folder: Path
    process: subprocess.Popen = field(init=False)

    def __post_init__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "launcher.err", "w") as err:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("copies.py"))],
                env=ENVIRONMENT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                start_new_session=True,
            )

    def run(self, command: list[str], folder: Path, seconds: float) -> tuple[Ended, float]:
        """Run a command of `script`; return how it ended and the MiB it took. Raises Failed if it exceeds `seconds`."""
        folder.mkdir(parents=True, exist_ok=True)
        out, err = folder / "out", folder / "err"
        (folder / "command").write_text(" ".join(command) + "\n")
        order = {"argv": command[1:], "out": str(out), "err": str(err), "seconds": seconds}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if answer["status"] is None:
            raise Failed(f"still running after {seconds:.0f} s; see {folder}")
        ended = Ended(answer["status"], out.read_text(errors="replace"), err.read_text(errors="replace"))
        return ended, answer["mebibytes"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(SECONDS_TO_END)
        self.process.stdout.close()
