"""A Python that has already imported the modules of scripts, for tests that start many scripts.

`python()` is the path of an executable that is called like `sys.executable` and gives the same results, ten seconds
earlier: a copy of a server process runs its command line. Working directory, environment, standard streams, exit
status, SIGINT and SIGTERM pass through; the copy, and every process that it starts as `sys.executable`, ends with the
caller. A process of the server is between the caller and the copy, so a rank would not find its launcher: --nproc needs
the real executable.
"""

import atexit
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
IMPORTED = ("transrec.runner", "torch._dynamo", "transformers.models.bert.modeling_bert", "transformers.models.vit")
# Runs without site and environment, so that it starts at once.
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
told = {{"argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ), "python": __file__}}
socket.send_fds(connection, [len(text := json.dumps(told).encode()).to_bytes(8, "little")], [0, 1, 2])
connection.sendall(text)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: connection.sendall(bytes([number])))
status = int.from_bytes(connection.recv(4), "little", signed=True)
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


@cache
def python() -> str:
    """Start the server, once per process and until the process ends, and return the path of the executable."""
    folder = tempfile.TemporaryDirectory()
    client, address = Path(folder.name) / "python", Path(folder.name) / "socket"
    client.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    client.chmod(0o755)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(address))
    listener.listen()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    server = subprocess.Popen(
        [sys.executable, __file__, str(listener.fileno()), str(os.getpid())],
        env=environment,
        pass_fds=[listener.fileno()],
    )
    atexit.register(folder.cleanup)
    atexit.register(server.wait)
    atexit.register(server.terminate)
    return str(client)


def _serve(listener: socket.socket, parent: int) -> None:
    """Answer every caller in a separate process, as long as the parent lives."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while os.getppid() == parent:
        if not select.select([listener], [], [], 1)[0]:
            continue
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _answer(connection)
        connection.close()


def _answer(connection: socket.socket) -> None:
    """Run the caller's command in a copy of this process and report how it ended; ends this process."""
    head, streams, _, _ = socket.recv_fds(connection, 8, 3)
    length, text = int.from_bytes(head, "little"), b""
    while len(text) < length:
        text += connection.recv(length - len(text))
    pid = os.fork()
    if pid == 0:
        connection.close()
        _become(json.loads(text), streams)
    ended = os.pidfd_open(pid)
    while ended not in (ready := select.select([connection, ended], [], [])[0]):
        if connection in ready:
            # A connection without further data belongs to a caller that was killed.
            numbers = connection.recv(16) or [signal.SIGKILL]
            for number in numbers:
                os.kill(pid, number)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        connection.sendall(status.to_bytes(4, "little", signed=True))
    finally:
        os._exit(0)


def _become(told: dict, streams: list[int]) -> None:
    """Run a Python command line: a script, -m MODULE or -c CODE; ends this process."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(told["cwd"])
    os.environ.clear()
    os.environ.update(told["env"])
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    sys.executable, sys.orig_argv = told["python"], [told["python"], *told["argv"]]
    # -u is ignored: streams are flushed at the end, and nobody reads them before.
    first, *rest = [word for word in told["argv"] if word != "-u"]
    for folder in reversed(os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        sys.path.insert(0, folder)
    status = 0
    try:
        if first in ("-c", "-m"):
            sys.argv, sys.path[:0] = [first, *rest[1:]], [""]
            if first == "-c":
                exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
            else:
                runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[:0] = [first, *rest], [str(Path(first).resolve().parent)]
            runpy.run_path(first, run_name="__main__")
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


if __name__ == "__main__":
    for name in IMPORTED:
        __import__(name)
    _serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
