"""Machines made of namespaces: each has its own network, name, processes, /tmp and /dev/shm.

A bridge joins them inside a network namespace of its own, the login machine; the host's network is
not touched and nothing listens on it. Every process ends with its machine's first process.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parent.parent.parent


def sh(*command: object, timeout: float = 30) -> str:
    """Run a command that must succeed; its output."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=timeout
    )
    if done.returncode:
        raise RuntimeError(f"{shlex.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


@dataclass
class Machine:
    """One namespace with an address on the bridge."""

    name: str
    namespace: str
    address: str
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    def enter(self) -> list[str]:
        """The words that put a command onto this machine's network."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}"]

    def boot(self, command: str, environment: Mapping[str, str], hosts: Path) -> None:
        """Start the machine; ``command`` is its only service."""
        temporary = self.folder / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        lines = [
            f"hostname {self.name}",
            "mount --make-rprivate /",
            "mount -t tmpfs -o size=2g tmpfs /dev/shm",
            f"mount --bind {hosts} /etc/hosts",
            *self._own_tmp(temporary),
            f"exec {command}",
        ]
        kinds = ["--uts", "--mount", "--pid", "--ipc", "--fork", "--mount-proc", "--kill-child"]
        log = (self.folder / "machine.log").open("ab")
        self.process = subprocess.Popen(
            [*self.enter(), "unshare", *kinds, "bash", "-ec", "\n".join(lines)],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def _own_tmp(self, temporary: Path) -> list[str]:
        """A /tmp of its own, through which the code under test stays visible."""
        keep = [p for p in (REPOSITORY, Path(sys.prefix)) if p.is_relative_to("/tmp")]
        before = [f"mkdir -p {self.folder}/keep{i}" for i, _ in enumerate(keep)]
        before += [f"mount --bind {p} {self.folder}/keep{i}" for i, p in enumerate(keep)]
        after = [
            f"mkdir -p {p} && mount --bind {self.folder}/keep{i} {p}" for i, p in enumerate(keep)
        ]
        return [*before, f"mount --bind {temporary} /tmp", *after]

    def processes(self, *words: str) -> list[psutil.Process]:
        """Its processes whose command line holds all the words."""
        place = Path("/run/netns", self.namespace).stat().st_ino
        found = []
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            with contextlib.suppress(OSError):
                inside = Path(f"/proc/{process.pid}/ns/net").stat().st_ino == place
                if inside and all(word in line for word in words):
                    found.append(process)
        return found

    def kill(self) -> None:
        """Cut the power: every process of the machine ends at once."""
        if self.process is None:
            return
        # The only child of unshare is the first process of the namespace.
        with contextlib.suppress(FileNotFoundError):
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            for pid in children.read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        self.process.wait(20)
        self.process = None


@dataclass
class Network:
    """The login machine with its bridge, and the machines on it."""

    folder: Path
    names: Sequence[str]
    subnet: str = "10.213.87"
    machines: dict[str, Machine] = field(default_factory=dict)
    login: Machine = field(init=False)

    def __post_init__(self) -> None:
        self.mark = "ds" + secrets.token_hex(3)
        self.login = Machine(
            "login", f"{self.mark}-login", f"{self.subnet}.1", self.folder / "login"
        )
        for number, name in enumerate(self.names):
            self.machines[name] = Machine(
                name, f"{self.mark}-{name}", f"{self.subnet}.{11 + number}", self.folder / name
            )

    @property
    def hosts(self) -> Path:
        """A file of names for /etc/hosts."""
        return self.folder / "hosts"

    def up(self) -> None:
        """Make the namespaces, the bridge and the cables."""
        everyone = [self.login, *self.machines.values()]
        self.hosts.write_text(
            "127.0.0.1 localhost\n" + "".join(f"{m.address} {m.name}\n" for m in everyone)
        )
        inside = self.login.enter()
        for machine in everyone:
            machine.folder.mkdir(parents=True, exist_ok=True)
            sh("ip", "netns", "add", machine.namespace)
            sh(*machine.enter(), "ip", "link", "set", "lo", "up")
        sh(*inside, "ip", "link", "add", "br0", "type", "bridge")
        sh(*inside, "ip", "addr", "add", f"{self.login.address}/24", "dev", "br0")
        sh(*inside, "ip", "link", "set", "br0", "up")
        for number, machine in enumerate(self.machines.values()):
            far = ["peer", "name", "eth0", "netns", machine.namespace]
            sh(*inside, "ip", "link", "add", f"veth{number}", "type", "veth", *far)
            sh(*inside, "ip", "link", "set", f"veth{number}", "master", "br0", "up")
            sh(*machine.enter(), "ip", "addr", "add", f"{machine.address}/24", "dev", "eth0")
            sh(*machine.enter(), "ip", "link", "set", "eth0", "up")

    def down(self) -> None:
        """End every machine and remove the namespaces."""
        for machine in self.machines.values():
            machine.kill()
        for machine in [self.login, *self.machines.values()]:
            subprocess.run(["ip", "netns", "del", machine.namespace], capture_output=True)


def wait_until(what: str, condition: object, seconds: float = 60, every: float = 0.2) -> None:
    """Wait until the condition holds, or say what did not come."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {seconds:.0f} s")
        time.sleep(every)
