"""What a sweep carries from point to point of a task, kept beside the commits until it ends.

The store's own shards hold most of it. Kept here is what they lack: the rows of the stream that the
task runs but does not store, the layer's statistics (whose shard holds all layers), and the rows
for the lens (whose values need the last point). A sweep that was killed goes on from these, or
starts the task anew where they are missing or unsound; they decide nothing that is committed.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from blake3 import blake3
from depthscope.storage.atomic import write_bytes
from depthscope.storage.layout import StorePaths

_DIGEST = "blake3"


class CarriedFiles:
    """The files of one task: for every point its *numbers*, for the latest its *stream*.

    Parameters
    ----------
    root
        The store.
    task
        Number of the task.
    """

    def __init__(self, root: Path, task: int) -> None:
        self.folder = StorePaths(root).carried / f"{task:06d}"

    def _path(self, kind: str, point: int) -> Path:
        return self.folder / f"{point}.{kind}.safetensors"

    def save(self, kind: str, point: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write, flushed and under its name at once; tensors lie in host memory."""
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        metadata = {_DIGEST: _digest(whole)}
        write_bytes(self._path(kind, point), safetensors.torch.save(whole, metadata))

    def load(self, kind: str, point: int) -> Mapping[str, torch.Tensor] | None:
        """Read back; None where the file is missing or unsound."""
        path = self._path(kind, point)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name).clone() for name in _names(file)}
                stored = (file.metadata() or {}).get(_DIGEST)
        except (FileNotFoundError, safetensors.SafetensorError):
            return None
        return tensors if stored == _digest(tensors) else None

    def has(self, kind: str, point: int) -> bool:
        """Whether the file is there; it may be unsound."""
        return self._path(kind, point).is_file()

    def remove(self, kind: str, point: int) -> None:
        """Remove one file."""
        self._path(kind, point).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove everything of the task: it is complete, or starts anew."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _names(file: Any) -> list[str]:
    return list(file.keys())


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = blake3()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
