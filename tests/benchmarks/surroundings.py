"""Where a benchmark ran: commit, machine, software."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "transformers", "numpy", "safetensors", "ray", "nnsight", "transformer-lens")


def describe(repository: Path, scratch: Path) -> dict[str, Any]:
    """Commit, machine and time, as they stand beside every section."""
    return {
        "commit": _git(repository, "rev-parse", "--short=12", "HEAD") or "none",
        "changed": bool(_git(repository, "status", "--porcelain", "--", ".", ":!*/RESULTS.*")),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "memory": f"{_memory() / 2**30:.0f} GiB",
            "filesystem": _filesystem(scratch),
            "kernel": platform.release(),
            "software": f"Python {platform.python_version()}, {_libraries()}",
            "load": f"{os.getloadavg()[0]:.2f}",
        },
    }


def _git(repository: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _filesystem(folder: Path) -> str:
    """Type of the file system that holds the folder: the longest mount point above it."""
    folder = folder.resolve()
    mounts: Mapping[str, str] = {
        fields[1]: fields[2]
        for fields in map(str.split, Path("/proc/mounts").read_text().splitlines())
    }
    above = [name for name in mounts if folder.is_relative_to(name)]
    return mounts[max(above, key=len)] if above else "unknown file system"


def _libraries() -> str:
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
