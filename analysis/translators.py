"""The affine translators of a tuned lens: h_l ↦ h_l + A·h_l + b, one file per point.

``point-005.safetensors`` holds ``weight`` A (hidden, hidden) and ``bias`` b (hidden,), float32, and
says what it was trained from. Translator l acts on the residual stream that *enters* layer l, as
in the original (Belrose et al. 2023). Files are read through memory maps, so the lens of a model of
any size needs no memory of its own.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from depthscope.storage.atomic import sync_folder
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths
from numpy.typing import NDArray
from safetensors.numpy import save_file

from .store import Run

Float32 = NDArray[np.float32]
#: How the stream at a point is read: as it is, or through its translator.
Lens = Literal["logit", "tuned"]


@dataclass(frozen=True)
class Translators:
    """A folder of translators.

    Attributes
    ----------
    folder
        Where their files lie.
    key
        Digest of what they are trained from and how; files with another are not theirs.
    """

    folder: Path
    key: str

    def path(self, point: int) -> Path:
        """The file of a point's translator."""
        return self.folder / f"point-{point:03d}.safetensors"

    @property
    def unfinished(self) -> Path:
        """Where a training that is not finished keeps its state."""
        return self.folder / "training.safetensors"

    def has(self, point: int) -> bool:
        """Whether a point's translator is trained."""
        return read_header(self.path(point)).get("key") == self.key

    def facts(self, point: int) -> dict[str, str]:
        """What is said about a point's translator."""
        return read_header(self.path(point))

    def save(self, point: int, weight: Float32, bias: Float32, facts: Mapping[str, str]) -> None:
        """Write a point's translator, whole or not at all."""
        write_tensors(
            self.path(point), {"weight": weight, "bias": bias}, {**facts, "key": self.key}
        )

    def apply(self, point: int, rows: Float32) -> Float32:
        """Rows of the residual stream at a point, (n, hidden) float32, translated."""
        path = self.path(point)
        weight, bias = _mapped(path, path.stat().st_mtime_ns)
        return np.asarray(rows + rows @ weight.T + bias, dtype=np.float32)


def lens_translators(run: Run, lens: Lens) -> Translators | None:
    """The translators that ``tuned_lens`` has saved in a run's first store; None for ``logit``.

    Raises
    ------
    RequestError
        There is no such lens, or a stored point has no translator.
    """
    if lens == "logit":
        return None
    if lens != "tuned":
        raise RequestError(f"unknown lens {lens!r}; use logit or tuned")
    root = run.snapshots[0].root
    folder = StorePaths(root).analysis("tuned_lens").with_suffix(".translators")
    points = [point for point in run.points if point < run.layers]
    found = Translators(folder, "")
    keys = {found.facts(point).get("key", "") for point in points}
    if len(keys) != 1 or keys == {""}:
        raise RequestError(
            f"{root} has no tuned lens of its points: run depthscope analyze {root} tuned_lens"
        )
    return Translators(folder, keys.pop())


def write_tensors(
    path: Path, tensors: Mapping[str, NDArray[Any]], facts: Mapping[str, str]
) -> None:
    """Write a safetensors file under a temporary name, flush it and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        contiguous = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
        save_file(contiguous, temporary, metadata=dict(facts))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def read_header(path: Path) -> dict[str, str]:
    """The facts in a safetensors file; none where there is no such file, or it is no such file."""
    try:
        return dict(_header(path)[0].get("__metadata__", {}))
    except (OSError, ValueError):
        return {}


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data begin."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError(f"{path} is no safetensors file")
        header: dict[str, Any] = json.loads(file.read(size))
    return header, 8 + size


@lru_cache(maxsize=512)
def _mapped(path: Path, stamp: int) -> tuple[Float32, Float32]:
    header, begin = _header(path)
    found = []
    for name in ("weight", "bias"):
        first = begin + int(header[name]["data_offsets"][0])
        shape = tuple(header[name]["shape"])
        found.append(np.memmap(path, np.float32, "r", offset=first, shape=shape))
    return found[0], found[1]
