"""A real Slurm of two nodes on virtual machines, from Debian's packages."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .virtual_nodes import Network, wait_until

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "iproute2")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter", "unshare")
CONTROLLER_PORT, NODE_PORT = 6817, 6818
CPUS, MEMORY = 4, 6000
SLOW = Path(__file__).parent / "slow"

SETTINGS = """
ClusterName=depthscope
SlurmctldHost=login({login})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=bf_interval=1,sched_min_interval=100000
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=5
InactiveLimit=0
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
{nodes}
PartitionName=batch Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE
PartitionName=patient Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str | None:
    """Why no Slurm can run here, after trying to install it; None where one can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    if not all(shutil.which(program) for program in PROGRAMS):
        install(PACKAGES)
    if absent := [program for program in PROGRAMS if not shutil.which(program)]:
        return f"{', '.join(absent)} is not installed, and apt-get could not install it"
    trial = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True
    )
    if trial.returncode:
        return f"namespaces are not allowed here: {trial.stderr.decode().strip()}"
    return None


def install(packages: Sequence[str]) -> None:
    """Install Debian's packages, where they can be; whoever asks looks whether they are there."""
    if shutil.which("apt-get") is None:
        return
    # RUNLEVEL=1 keeps the packages from starting services of their own.
    environment = {**os.environ, "RUNLEVEL": "1", "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        subprocess.run(
            ["apt-get", "-qq", *command], env=environment, capture_output=True, timeout=600
        )


@dataclass
class Slurm:
    """The cluster, seen from its login machine.

    Attributes
    ----------
    folder
        Everything of this cluster; ``shared`` in it is the nodes' common file system.
    """

    folder: Path
    network: Network

    @property
    def shared(self) -> Path:
        """The folder that every node sees."""
        return self.folder / "shared"

    @property
    def environment(self) -> dict[str, str]:
        """What a user of the cluster has in the environment."""
        # Torch, once it is imported, leaves a variable of its own.
        left = ("SLURM_", "RAY_", "TORCHINDUCTOR_")
        drop = {name for name in os.environ if name.startswith(left)}
        ours = {k: v for k, v in os.environ.items() if k not in drop}
        return {
            **ours,
            "PATH": f"{Path(sys.prefix) / 'bin'}:{ours['PATH']}",
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "XDG_STATE_HOME": str(self.shared / "state"),
            "HF_HUB_OFFLINE": "1",
        }

    def run(
        self, *command: object, timeout: float = 60, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the login machine."""
        done = subprocess.run(
            [*self.network.login.enter(), *map(str, command)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=self.shared,
            env={**self.environment, **environment},
        )
        if check and done.returncode:
            raise RuntimeError(f"{command}: {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def depthscope(self, *words: object, check: bool = True, timeout: float = 120) -> str:
        """Run depthscope on the login machine; what it says, on stderr where it fails."""
        done = self.run("depthscope", *words, check=check, timeout=timeout)
        return done.stdout if done.returncode == 0 else done.stderr

    def submit(self, *words: str, pause: float = 0) -> str:
        """Submit a job through depthscope; Slurm's id of it.

        ``pause`` seconds are slept before every pass of its model.
        """
        # The batch job takes the environment of its submission along, as Slurm's default is.
        slow = {"PYTHONPATH": str(SLOW), "TEST_PAUSE": str(pause)} if pause else {}
        done = self.run("depthscope", "submit", *words, "--json", timeout=120, **slow)
        return str(json.loads(done.stdout)["job"])

    def log(self, number: str) -> str:
        """What a job has printed."""
        return Path(self.job(number)["StdOut"]).read_text()

    def job(self, number: str) -> dict[str, str]:
        """What the controller knows about a job."""
        text = self.run("scontrol", "show", "job", "-o", number).stdout
        # Of a heterogeneous job the first component, which holds the script.
        return dict(re.findall(r"(\S+?)=(\S*)", text.splitlines()[0]))

    def state(self, number: str) -> str:
        """State of a job."""
        return self.job(number)["JobState"]

    def ended(self, number: str, seconds: float = 180) -> str:
        """Wait for the last state of a job."""
        final = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}
        try:
            wait_until(f"the end of job {number}", lambda: self.state(number) in final, seconds, 1)
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {self.job(number)}\n{self.log(number)}") from None
        return self.state(number)

    def nothing_left(self, number: str) -> None:
        """Check that no process, folder or secret of a job is left."""

        def none() -> bool:
            running = [m.processes("ray") for m in self.network.machines.values()]
            return not any(running)

        wait_until(f"the end of every process of job {number}", none, 60)
        for machine in self.network.machines.values():
            for pattern in ("ds-*", "pymp-*", "torchinductor*", "ray*"):
                assert list((machine.folder / "tmp").glob(pattern)) == []
        assert list((self.shared / "state").rglob(f"token-{number}")) == []
        assert list((self.shared / "state").rglob("key")) == []

    def start_node(self, name: str) -> None:
        """Boot a node."""
        (self.folder / name / "spool").mkdir(parents=True, exist_ok=True)
        machine = self.network.machines[name]
        machine.boot(f"slurmd -D -N {name}", self.environment, self.network.hosts)

    def idle(self, nodes: Sequence[str] = ()) -> None:
        """Wait until the nodes are free."""
        names = ",".join(nodes or self.network.names)
        show = ("sinfo", "-h", "-N", "-n", names, "-o", "%T")
        wait_until(
            "idle nodes", lambda: set(self.run(*show).stdout.split()) == {"idle"}, seconds=90
        )


@contextmanager
def slurm_cluster(names: Sequence[str] = ("n1", "n2")) -> Iterator[Slurm]:
    """Bring the cluster up for the block."""
    # Not below /tmp: every node has a /tmp of its own.
    folder = Path(tempfile.mkdtemp(prefix="ds-slurm-", dir="/var/tmp"))
    network = Network(folder, names)
    cluster = Slurm(folder, network)
    services: list[subprocess.Popen[bytes]] = []
    try:
        network.up()
        for name in ("shared", "state", "munge"):
            (folder / name).mkdir(mode=0o700)
        _configure(cluster)
        services.append(_munge(folder))
        wait_until("munge", (folder / "munge.socket").exists)
        services.append(_controller(cluster))
        for name in names:
            cluster.start_node(name)
        wait_until("the controller", lambda: cluster.run("sinfo", check=False).returncode == 0)
        cluster.idle()
        yield cluster
    finally:
        network.down()
        for service in reversed(services):
            service.terminate()
            service.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _configure(cluster: Slurm) -> None:
    nodes = "\n".join(
        f"NodeName={m.name} NodeHostname={m.name} NodeAddr={m.address} "
        f"CPUs={CPUS} RealMemory={MEMORY}"
        for m in cluster.network.machines.values()
    )
    (cluster.folder / "slurm.conf").write_text(
        SETTINGS.format(
            login=cluster.network.login.address,
            folder=cluster.folder,
            controller_port=CONTROLLER_PORT,
            node_port=NODE_PORT,
            nodes=nodes,
        )
    )


def _munge(folder: Path) -> subprocess.Popen[bytes]:
    key = folder / "munge" / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    # munged insists that nobody else can write anywhere above its socket.
    places = {"socket": folder / "munge.socket", "pid-file": folder / "munge" / "pid"}
    places |= {"log-file": folder / "munge" / "log", "seed-file": folder / "munge" / "seed"}
    options = [f"--{name}={path}" for name, path in places.items()]
    return subprocess.Popen(
        ["munged", "--foreground", "--force", f"--key-file={key}", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _controller(cluster: Slurm) -> subprocess.Popen[bytes]:
    inside = cluster.network.login.enter()
    return subprocess.Popen(
        [*inside, "unshare", "--uts", "sh", "-c", "hostname login && exec slurmctld -D"],
        env=cluster.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
