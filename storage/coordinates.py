"""Coordinates: small one-dimensional arrays of numbers or labels, written whole by the driver."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from . import atomic
from .errors import Damage, RequestError
from .metadata import array_metadata, chunk_codecs, create_metadata, read_metadata
from .sharding import CHECKSUM_BYTES, DTYPES, checksum

#: Values of a coordinate in one of its chunks (8 MB of int64).
COORDINATE_CHUNK = 1 << 20


def create_coordinate(
    root: Path,
    path: str,
    values: NDArray[Any],
    dimension: str,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Create a small one-dimensional array with its values; it is not sharded.

    The metadata is written last, so that an array that can be opened has all its values.

    Raises
    ------
    RequestError
        Another array exists at that path, or the values are no one-dimensional numbers.
    """
    dtype = values.dtype.name
    if values.ndim != 1 or dtype not in DTYPES:
        raise RequestError(f"{path}: a coordinate needs one axis of numbers, not {values.dtype}")
    chunk = max(1, min(len(values), COORDINATE_CHUNK))
    codecs = chunk_codecs("none", values.dtype.itemsize)
    metadata = array_metadata(values.shape, dtype, (dimension,), (chunk,), codecs, attributes or {})
    if (root / path / "zarr.json").exists():
        create_metadata(root, path, metadata)
        if not np.array_equal(read_coordinate(root, path), values):
            raise RequestError(f"{root / path}: exists with other values; use another store")
        return
    for first in range(0, len(values), chunk):
        part = np.zeros(chunk, values.dtype)
        part[: len(values) - first] = values[first : first + chunk]
        raw = part.view(np.uint8)
        atomic.write_bytes(root / path / "c" / str(first // chunk), raw.tobytes() + checksum(raw))
    create_metadata(root, path, metadata)


def read_coordinate(root: Path, path: str) -> NDArray[Any]:
    """The values of an array made by `create_coordinate`.

    Raises
    ------
    RequestError
        There is no such array.
    Damage
        A file of it is missing or fails its checksum.
    """
    found = read_metadata(root, path)
    (length,) = found["shape"]
    (chunk,) = found["chunk_grid"]["configuration"]["chunk_shape"]
    out = np.empty(length, DTYPES[found["data_type"]])
    for first in range(0, length, chunk):
        file = root / path / "c" / str(first // chunk)
        try:
            content = np.frombuffer(file.read_bytes(), np.uint8)
        except FileNotFoundError as error:
            raise Damage(f"{file} is missing; run: depthscope verify {root} --repair") from error
        raw, stored = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
        if raw.size != chunk * out.itemsize or checksum(raw) != stored.tobytes():
            raise Damage(f"{file} is damaged; run: depthscope verify {root} --repair")
        out[first : first + chunk] = raw.view(out.dtype)[: length - first]
    return out


def create_labels(root: Path, path: str, values: Sequence[str], dimension: str) -> None:
    """Create a one-dimensional array of strings, in the form that xarray gives its own labels."""
    with warnings.catch_warnings():
        # zarr-python warns that strings are younger than the specification; readers know them.
        warnings.simplefilter("ignore")
        array = zarr.create_array(
            root / path,
            shape=(len(values),),
            chunks=(len(values),),
            dtype=str,
            dimension_names=[dimension],
            zarr_format=3,
        )
        array[:] = np.array(values, dtype=object)
