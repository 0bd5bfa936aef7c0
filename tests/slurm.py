"""A real Slurm of two nodes inside this machine, started and stopped by a test (Slurm 22.05 of Debian 12)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=1 RealMemory=1000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs=1 RealMemory=1000
PartitionName=debug Nodes=ALL Default=YES
"""


class Cluster:
    """Commands of a running Slurm. environment: where they find it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def call(self, *words: str, **more: str) -> str:
        """A command's output; raises with its words where it fails."""
        done = subprocess.run(
            words, env={**self.environment, **more}, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED, …"""
        words = self.call("scontrol", "show", "job", job).split()
        return next(word.removeprefix("JobState=") for word in words if word.startswith("JobState="))

    def wait_until_idle(self, seconds: float = 120) -> None:
        """Until both nodes are there and have nothing to do, not even to clear up after a job."""
        ends = time.monotonic() + seconds
        seen = ""
        while time.monotonic() < ends:
            done = subprocess.run(
                ["sinfo", "-h", "-o", "%D %t"], env=self.environment, capture_output=True, text=True, check=False
            )
            seen = done.stdout + done.stderr
            if done.stdout.strip() == "2 idle":
                return
            time.sleep(0.3)
        logs = "\n".join(path.read_text()[-800:] for path in sorted(self.folder.glob("*.out")))
        pytest.fail(f"Slurm's nodes are not idle: {seen}\n{logs}")


def skip_without_slurm() -> None:
    """Skips the test where a Slurm cannot be started."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not found: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons need root here")


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Two nodes, ready for jobs; all daemons end with the block."""
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    ports = _free_ports(3)
    host = socket.gethostname().split(".")[0]
    config = CONFIG.format(host=host, folder=folder, port=ports[0], port1=ports[1], port2=ports[2])
    (folder / "slurm.conf").write_text(config)
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    slurm = Cluster(folder)
    daemons = [
        [
            *("munged", "--foreground", "--force", f"--key-file={folder}/munge.key"),
            *(f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid"),
            *(f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"),
        ],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-N", "n1"],
        ["slurmd", "-D", "-N", "n2"],
    ]
    started: list[subprocess.Popen] = []
    try:
        for program in daemons:
            path = {**slurm.environment, "PATH": f"{os.environ['PATH']}:/usr/sbin"}
            output = (folder / f"{program[0]}-{len(started)}.out").open("w")
            started.append(subprocess.Popen(program, env=path, stdout=output, stderr=subprocess.STDOUT))
            time.sleep(0.5)
        slurm.wait_until_idle()
        yield slurm
    finally:
        for daemon in reversed(started):
            daemon.terminate()
        for daemon in started:
            _wait(daemon)


def _wait(daemon: subprocess.Popen) -> None:
    """slurmd sometimes waits for a step that has ended, and does not end itself."""
    try:
        daemon.wait(timeout=20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [int(sock.getsockname()[1]) for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
