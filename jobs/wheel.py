"""This very version of depthscope as a wheel, made from its installed files.

Needs no build tools and no network, and works from an installed wheel as well as from a checkout.
Dependencies are left out of its metadata: they belong to the cluster, and Ray would otherwise
fetch them all for every job. A digest of the files is part of the version, since a cluster that has
seen a wheel of some name never takes another of that name.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from importlib.metadata import distribution
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

PACKAGES = ("storage", "pipeline", "analysis", "jobs", "deploy")
#: The same files give the same bytes, so that a cluster unpacks them once.
_STAMP = (1980, 1, 1, 0, 0, 0)


def pack_wheel(folder: Path) -> Path:
    """Write the wheel into a folder; its path."""
    ours = distribution("depthscope")
    content: dict[str, bytes] = {}
    for package in PACKAGES:
        _collect(files(f"depthscope.{package}"), f"depthscope/{package}", content)
    digest = hashlib.sha256()
    for place, data in content.items():
        digest.update(f"{place} {len(data)} ".encode() + data)
    version = f"{ours.version.partition('+')[0]}+files.{digest.hexdigest()[:12]}"
    name = f"depthscope-{version}"
    information = f"{name}.dist-info"
    content[f"{information}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: depthscope\nVersion: {version}\n".encode()
    )
    content[f"{information}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: depthscope\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    content[f"{information}/entry_points.txt"] = (ours.read_text("entry_points.txt") or "").encode()
    lines = [f"{path},{_digest(data)},{len(data)}" for path, data in content.items()]
    record = f"{information}/RECORD"
    content[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    path = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for place, data in content.items():
            archive.writestr(zipfile.ZipInfo(place, _STAMP), data)
    return path


def _collect(folder: Traversable, place: str, content: dict[str, bytes]) -> None:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            if entry.name not in ("__pycache__", ".typing"):
                _collect(entry, f"{place}/{entry.name}", content)
        elif not entry.name.endswith((".pyc", ".gitkeep")):
            content[f"{place}/{entry.name}"] = entry.read_bytes()


def _digest(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"
