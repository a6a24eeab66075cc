"""Arrays of one or several stores as one lazy Dask array, read through the shard reader.

A block is one point (or all layers of one quantity), whole chunks of rows, and at most about 64 MB.
Dask fuses a slice into the read, so ``array[3, 100:200]`` reads those rows only; a list of rows it
does not. A selection made by ``Run.where`` or ``Run.at`` is therefore part of the row axis: its
blocks gather exactly their rows, sorted and merged, however they are scattered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import dask.array as da
import numpy as np
from depthscope.storage.arrays import ArrayPlan
from depthscope.storage.errors import RequestError
from depthscope.storage.shard_reader import ArrayReader, widen
from depthscope.storage.spans import Spans, covers
from numpy.typing import NDArray

from .rows import Numbers, Piece, RowAxis

#: Bytes of a Dask block.
BLOCK_BYTES = 64 << 20

Key = int | slice | NDArray[np.int64] | Sequence[int]


@dataclass(frozen=True)
class StoredPart:
    """One store's share of an array.

    Attributes
    ----------
    root
        The store.
    plan
        How its array is laid out.
    leading
        Places along the first axis that are shown, where they are a selection; rows are selected
        by the row axis.
    points
        The point that each place along the first axis is committed with, for arrays that are
        committed point by point.
    """

    root: Path
    plan: ArrayPlan
    leading: tuple[int, ...] | None = None
    points: tuple[int, ...] = ()

    def committed(self, places: NDArray[np.int64], points: Spans) -> NDArray[np.bool_]:
        """Which of these places along the first axis belong to these points."""
        known = np.array([covers(points, point, point) for point in self.points], dtype=np.bool_)
        return np.asarray(known[places])


@dataclass(frozen=True, eq=False)
class StoredArray:
    """An array over the visible rows of all opened stores; indexing it reads.

    Points that are not committed of some rows read as NaN there, whatever lies on the disk.

    Attributes
    ----------
    parts
        The stores' shares, by the number of the store; all of one dtype and inner shape.
    axis
        The visible rows.
    """

    parts: tuple[StoredPart, ...]
    axis: RowAxis

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the axes."""
        return self.parts[0].plan.dimensions

    @property
    def row_axis(self) -> int:
        """Which axis is the row."""
        return self.parts[0].plan.row_axis

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes, the row's as far as it is visible."""
        first = self.parts[0]
        shape = list(first.plan.shape)
        if first.leading is not None:
            shape[0] = len(first.leading)
        shape[self.row_axis] = len(self.axis)
        return tuple(shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the values; ``ml_dtypes.bfloat16`` for bfloat16."""
        return self.parts[0].plan.numpy_dtype

    def __getitem__(self, key: tuple[Key, ...]) -> NDArray[Any]:
        """Read, indexing every axis by itself."""
        keys: list[Key] = [_numbers(k) if isinstance(k, list) else k for k in key]
        rows = keys[self.row_axis]
        if isinstance(rows, int | np.integer):
            keys[self.row_axis] = np.array([rows], dtype=np.int64)
            return np.asarray(np.take(self._read(keys), 0, axis=self._place(keys)))
        return self._read(keys)

    def read(self, piece: Piece, *outer: Key, as_float32: bool = False) -> NDArray[Any]:
        """Read the rows of a piece; ``outer`` indexes the axes before the row."""
        keys: list[Key] = [slice(None)] * self.ndim
        keys[: len(outer)] = outer
        return self._read_piece(piece, keys, as_float32)

    def _place(self, keys: Sequence[Key]) -> int:
        """Where the row axis lies once integers have dropped theirs."""
        return sum(not isinstance(k, int | np.integer) for k in keys[: self.row_axis])

    def _read(self, keys: list[Key]) -> NDArray[Any]:
        rows = keys[self.row_axis]
        if isinstance(rows, slice):
            first, last, step = rows.indices(len(self.axis))
            if step == 1:
                pieces = list(self.axis.cut(first, last))
                if len(pieces) == 1:
                    return self._read_piece(pieces[0], keys)
            rows = np.arange(first, last, step, dtype=np.int64)
        places = np.asarray(rows, dtype=np.int64)
        places = np.where(places < 0, places + len(self.axis), places)
        out, at = self._empty(keys, len(places)), self._place(keys)
        for piece, where in self.axis.take(places):
            target: list[Any] = [slice(None)] * out.ndim
            target[at] = where
            out[tuple(target)] = self._read_piece(piece, keys)
        return out

    def _empty(self, keys: Sequence[Key], rows: int) -> NDArray[Any]:
        shape = []
        for number, (key, length) in enumerate(zip(keys, self.shape, strict=True)):
            if number == self.row_axis:
                shape.append(rows)
            elif isinstance(key, slice):
                shape.append(len(range(*key.indices(length))))
            elif not isinstance(key, int | np.integer):
                shape.append(len(key))
        return np.empty(shape, self.dtype)

    def _read_piece(
        self, piece: Piece, keys: Sequence[Key], as_float32: bool = False
    ) -> NDArray[Any]:
        part = self.parts[piece.store]
        chosen = list(keys)
        if part.leading is not None:
            wanted = np.asarray(part.leading, dtype=np.int64)[keys[0]]
            chosen[0] = int(wanted) if wanted.ndim == 0 else wanted
        chosen[self.row_axis] = _as_key(piece.positions)
        reader = _open_reader(part.root, part.plan.path, _stamp(part))
        if reader.plan != part.plan:
            raise RequestError(f"{part.root} was trimmed since it was opened: open it again")
        if piece.committed is None:
            return np.asarray(reader.read(*chosen, as_float32=as_float32))
        places = np.asarray(np.arange(part.plan.shape[0])[chosen[0]])
        there = part.committed(places, piece.committed)
        if there.all():
            return np.asarray(reader.read(*chosen, as_float32=as_float32))
        out = self._empty(keys, len(piece))
        out[...] = np.nan
        if there.any():
            chosen[0] = places[there]
            out[there] = reader.read(*chosen)
        return np.asarray(widen(out) if as_float32 else out)


def lazy(array: StoredArray) -> Any:
    """The array as a Dask array whose blocks are read when they are computed."""
    plan, row = array.parts[0].plan, array.row_axis
    shape, inner = array.shape, list(plan.chunk)
    inner[row] = 1
    # The vector of a row is never cut: its chunk spans the whole axis.
    row_bytes = math.prod(min(i, n) for i, n in zip(inner, shape, strict=True))
    rows = max(1, BLOCK_BYTES // max(row_bytes * array.dtype.itemsize, 1))
    chunks = [_split(n, c) for n, c in zip(shape, inner, strict=True)]
    chunks[row] = array.axis.blocks(rows, plan.chunk[row])
    return da.from_array(
        array,
        chunks=tuple(chunks),
        name=f"{plan.path.rsplit('/', 1)[-1]}-{uuid4().hex}",
        asarray=False,
        fancy=True,
        lock=False,
        meta=np.empty((0,) * array.ndim, array.dtype),
    )


def _split(length: int, size: int) -> tuple[int, ...]:
    return tuple(min(size, length - first) for first in range(0, length, size)) or (0,)


def _as_key(positions: Numbers) -> slice | NDArray[np.int64]:
    if isinstance(positions, range):
        return slice(positions.start, positions.stop)
    return positions


def _numbers(values: list[int]) -> NDArray[np.int64]:
    return np.asarray(values, dtype=np.int64)


def _stamp(part: StoredPart) -> int:
    # A store that was made anew under the same name must not be read through old indices.
    return (part.root / part.plan.path / "zarr.json").stat().st_mtime_ns


@lru_cache(maxsize=256)
def _open_reader(root: Path, path: str, stamp: int) -> ArrayReader:
    return ArrayReader(root, path)
