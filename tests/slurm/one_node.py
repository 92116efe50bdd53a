"""A SLURM of one node on this machine, created for a test and removed after it.

Debian's slurm-wlm and munge are enough: key, configuration, state and sockets are in a separate folder, the ports are
free ones, and nothing of the system's own SLURM is read or written. It runs as root, and without control groups:
processes are tracked by their parents, and no job is limited to its CPUs or memory.
"""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
SECONDS_TO_START = 30
# Jobs wait only for CPUs, and a job that is queued again may start as soon as its credential is void.
CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MailProg=/bin/true
"""


def missing() -> str:
    """Return why SLURM cannot run here; "" if it can."""
    # Debian's folder of these programs, which is not on everybody's path.
    os.environ["PATH"] += f"{os.pathsep}/usr/sbin"
    absent = [name for name in (*DAEMONS, "sinfo") if shutil.which(name) is None]
    if absent:
        return f"needs {', '.join(absent)}; on Debian and Ubuntu: apt install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "its daemons start as root alone"


@contextmanager
def slurm(cpus: int) -> Iterator[dict[str, str]]:
    """Run SLURM within the context; yields the environment for its users."""
    # The path of a socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
    (folder / "munge.key").chmod(0o400)
    configuration = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    values = {"host": host, "cpus": cpus, "ports": _free_ports(2), "user": "root", "folder": folder}
    configuration.write_text(CONFIGURATION.format(**values))
    environment = os.environ | {"SLURM_CONF": str(configuration)}
    own = [f"--{name}={folder}/munge.{name.removesuffix('-file')}" for name in ("key-file", "socket", "pid-file")]
    own += [f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"]
    commands = [
        ["munged", "--foreground", "--force", *own],
        *([name, "-D", "-f", configuration] for name in DAEMONS[1:]),
    ]
    daemons = []
    try:
        for command in commands:
            with open(folder / f"{command[0]}.txt", "wb") as log:
                daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            if command[0] == "munged":
                _wait_for(lambda: (folder / "munge.socket").exists(), folder)
        _wait_for(lambda: output_of(environment, "sinfo", "--noheader", "--format=%T") == "idle", folder)
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()
        shutil.rmtree(folder)


def output_of(environment: dict[str, str], *command: str) -> str:
    """Return the output of a SLURM command."""
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout.strip()


def _wait_for(condition, folder: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while not condition():
        logs = "\n".join(path.read_text(errors="replace") for path in folder.glob("*.txt"))
        assert time.monotonic() < deadline, f"SLURM does not start:\n{logs}"
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with closing(socket.socket()) as first, closing(socket.socket()) as second:
        sockets = [first, second][:count]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
