"""Runs scripts as ordered on standard input, each in a copy of this process, which has all imports done.

A line {"argv", "out", "err", "seconds"} is answered with {"status", "mebibytes"}: the status is null if the script took
longer than `seconds`, and the memory is what it took in addition to this process.
"""

import json
import os
import resource
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path

import transrec.runner  # noqa: F401

MOST_MEMORY = 4 * 2**30


def run(order: dict) -> None:
    """Become the script; ends the process."""
    os.setsid()
    for number, name in ((1, order["out"]), (2, order["err"])):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MOST_MEMORY,) * 2)
    sys.argv = order["argv"]
    sys.path.insert(0, str(Path(order["argv"][0]).parent))
    status = 0
    try:
        runpy.run_path(order["argv"][0], run_name="__main__")
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def wait(pid: int, seconds: float) -> dict:
    """Return how the copy ended; it is killed after `seconds`."""
    deadline = time.monotonic() + seconds
    late = False
    while True:
        ended, status, used = os.wait4(pid, os.WNOHANG)
        if ended:
            return {
                "status": None if late else os.waitstatus_to_exitcode(status),
                "mebibytes": (used.ru_maxrss * 1024 - resident()) / 2**20,
            }
        if time.monotonic() > deadline:
            late = True
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.01)


if __name__ == "__main__":
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            run(order)
        print(json.dumps(wait(pid, order["seconds"])), flush=True)
