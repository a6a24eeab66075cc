"""Checkpoints made on the spot, and what their files say, without the project's own code."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def headers(folder: Path) -> dict[str, Any]:
    """Every tensor of a folder: its entry in the header of its file."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            entries = json.loads(file.read(length))
        found |= {name: e for name, e in entries.items() if name != "__metadata__"}
    return found


def stored_bytes(folder: Path, part: str) -> int:
    """Bytes of the tensors whose name has this part."""
    ends = [e["data_offsets"] for name, e in headers(folder).items() if part in name]
    return sum(last - first for first, last in ends)


def rewrite(folder: Path, change: Any) -> None:
    """Give a folder's only file of weights other tensors: ``change`` edits the dict of them."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def reset_dtype(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Store every tensor in another dtype."""
    tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()})
