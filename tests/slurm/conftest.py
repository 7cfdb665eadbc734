"""Fixture of a SLURM cluster with two nodes on this machine: munged, slurmctld and two slurmd."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo")
SBIN = os.pathsep.join(["/usr/sbin", "/sbin"])

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd_%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=60 PreemptMode=REQUEUE State=UP MaxTime=INFINITE
PartitionName=high Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF State=UP MaxTime=INFINITE
"""


class Cluster:
    """The daemons of the cluster, and methods that run its commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = os.pathsep.join([os.environ.get("PATH", ""), SBIN])
        self.env = {**os.environ, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        folder = self.folder
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        host = socket.gethostname().partition(".")[0]
        (folder / "slurm.conf").write_text(CONF.format(host=host, folder=folder, ports=free_ports(3)))
        self._daemon(
            "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}",
            f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed", f"--log-file={folder}/munged.log",
        )  # fmt: skip
        self.wait_until((folder / "munge.socket").exists, 20, "munged's socket")
        self._daemon("slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            (folder / f"spool_{node}").mkdir()
            self._daemon("slurmd", "-D", "-N", node)
        self.wait_until(lambda: self.run_command("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * 4, 60, "idle nodes")

    def stop(self) -> None:
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def submit(self, *arguments: str, cwd: Path, **env: str) -> str:
        """Submit a job and return its id."""
        return self.run_command("sbatch", "--parsable", *arguments, cwd=cwd, check=True, **env).strip()

    def run_command(self, *command: str, cwd: Path | None = None, check: bool = False, **env: str) -> str:
        result = subprocess.run(command, env={**self.env, **env}, cwd=cwd, capture_output=True, text=True, check=False)
        assert not check or result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def state(self, job: str) -> str:
        return dict(word.split("=", 1) for word in self.run_command("scontrol", "show", "job", job).split() if "=" in word)[
            "JobState"
        ]

    def wait_until(self, reached: object, seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not reached():  # type: ignore[operator]
            assert time.monotonic() < deadline, f"no {what} after {seconds:.0f} s; {self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.read_text(errors='replace')[-3000:]}" for p in sorted(self.folder.rglob("*.log")))

    def _daemon(self, *command: str) -> None:
        program = shutil.which(command[0], path=self.env["PATH"])
        assert program
        with (self.folder / f"{command[0]}.{command[-1]}.out".replace("/", "_")[-60:]).open("wb") as out:
            self.daemons.append(subprocess.Popen([program, *command[1:]], env=self.env, stdout=out, stderr=out))


def free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    path = os.pathsep.join([os.environ.get("PATH", ""), SBIN])
    missing = [name for name in PROGRAMS if not shutil.which(name, path=path)]
    reason = f"needs SLURM on this machine, and {', '.join(missing)} is missing: apt-get install slurm-wlm munge"
    if not missing and os.geteuid():
        missing, reason = ["root"], "requires root: slurmd starts jobs under their owners' names"
    if missing and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if missing:
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
