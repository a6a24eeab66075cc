"""Means over a store's rows of what parts add, and of the stream: what ``mean`` and erasure use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from depthscope.storage.atomic import write_bytes
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import ACTIVATIONS
from depthscope.storage.run_record import RunRecord
from depthscope.storage.shard_reader import ArrayReader
from numpy.typing import NDArray
from safetensors.torch import save

#: Rows read at a time.
_ROWS = 8192


def check_sublayers(root: Path, record: RunRecord, option: str) -> None:
    """Refuse a store that does not hold what attention and MLP add to every row.

    Raises
    ------
    RequestError
        Says how to make one that does.
    """
    group = record.groups.get("activations")
    whole = group is not None and group.rows == record.rows
    if not (record.specification["sublayers"] and whole):
        raise RequestError(
            f"{option} reads what attention and MLP add, which {root} does not hold for all rows: "
            "extract with --sublayers into a store and name it"
        )


def check_points(root: Path, record: RunRecord) -> None:
    """Refuse a store that does not hold every point of the stream.

    Raises
    ------
    RequestError
        Says how to make one that does.
    """
    if len(record.points) != int(record.model["layers"]) + 1:
        raise RequestError(
            f"--what erase needs the mean of the stream at every point, and {root} holds "
            f"{len(record.points)} of {int(record.model['layers']) + 1}: extract with --points all "
            "(--rows may choose fewer rows)"
        )


def save_means(root: Path, path: Path) -> None:
    """Write the means of what attention and MLP add, (layers, d) float32 each.

    Rows of documents that failed (NaN) are left out. Cost: one pass over the stored rows.
    """
    means = {
        name: torch.from_numpy(_mean(root, array))
        for name, array in (("attention", "attention_output"), ("mlp", "mlp_output"))
    }
    write_bytes(path, save(means))


def save_stream_means(root: Path, path: Path) -> None:
    """Write the mean of the stream at every stored point, (points, d) float32."""
    write_bytes(path, save({"stream": torch.from_numpy(_mean(root, "residual"))}))


def _mean(root: Path, array: str) -> NDArray[np.float32]:
    reader = ArrayReader(root, f"{ACTIVATIONS}/{array}")
    planes, rows, hidden = reader.shape
    means = np.empty((planes, hidden), np.float32)
    for plane in range(planes):
        total, count = np.zeros(hidden), 0
        for first in range(0, rows, _ROWS):
            values = reader.read(plane, slice(first, first + _ROWS), slice(None), as_float32=True)
            sound = values[~np.isnan(values).any(axis=1)]
            total += sound.sum(axis=0, dtype=np.float64)
            count += len(sound)
        means[plane] = total / max(count, 1)
    return means
