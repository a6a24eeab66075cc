"""Writing one shard file directly: chunks, checksums, index.

Stock Zarr writers hold a whole shard in memory, copy every chunk several times and never flush.
Here the bytes of an uncompressed chunk go from the caller's array to the file by one system call.

Guarantees: the bytes of the file depend on the values alone, not on the order in which chunks were
appended (they stand in C order); every chunk that reaches into the array is present; the file is
flushed when `ShardWriter.close` returns.

Cost: one pass over the data for each of crc32c, blake3 and the copy into the page cache. Compressed
chunks appended ahead of their turn are kept in memory until it comes.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .arrays import ArrayPlan, Index
from .digested_file import DigestedFile
from .errors import RequestError, WorkFailed
from .sharding import CHECKSUM_BYTES, MISSING, checksum, encode, encode_index, flat_index

Array = NDArray[Any]


@dataclass(frozen=True)
class WrittenShard:
    """A finished shard file, flushed, still under its temporary name.

    Attributes
    ----------
    path
        Where it belongs below the store.
    temporary
        Where it is.
    digest
        blake3 of the file, hexadecimal.
    bytes
        Length of the file.
    """

    path: str
    temporary: Path
    digest: str
    bytes: int


class ShardWriter:
    """Writes one shard chunk by chunk; used by one thread at a time.

    As a context manager it removes the file unless `close` was reached.

    Parameters
    ----------
    plan, shard
        The array, and the index of the shard in its grid.
    temporary
        The file to write; it must not exist. Its folder is made.

    Raises
    ------
    RequestError
        The array has no such shard.
    WorkFailed
        The file cannot be made.
    """

    def __init__(self, plan: ArrayPlan, shard: Index, temporary: Path) -> None:
        self.plan, self.shard, self._temporary = plan, tuple(shard), temporary
        self.path = plan.shard_file(self.shard)
        if len(shard) != len(plan.grid) or not _inside(shard, plan.grid):
            raise RequestError(f"{plan.path}: no shard {shard} in a grid of {plan.grid}")
        self._counts = plan.shard_chunks(self.shard)
        self._shape = plan.shard_shape(self.shard)
        self._total = math.prod(self._counts)
        self._appended = 0
        self._index = np.full((math.prod(plan.chunks_per_shard), 2), MISSING, np.uint64)
        self._waiting: dict[int, tuple[int, Array]] = {}
        try:
            self._file = DigestedFile(temporary)
        except OSError as error:
            raise self._failure("creating", error) from error

    def append(self, chunk: Index, data: Array) -> None:
        """Write one chunk.

        Parameters
        ----------
        chunk
            Its position inside the shard.
        data
            Its values in the array's dtype (or 16-bit integers holding the bits of bfloat16), in
            the chunk's shape; at the array's border only what lies inside.

        Raises
        ------
        RequestError
            The position is outside the array or was written before, or shape or dtype are wrong.
        WorkFailed
            The disk is full, or writing failed.
        """
        if self._file.closed:
            raise RequestError(f"{self.path}: is closed")
        rank, place = self._place(chunk)
        values = self._padded(chunk, data)
        encoded = encode(self.plan.codec, values, self.plan.numpy_dtype.itemsize)
        self._appended += 1
        self._index[place] = 0
        try:
            if self.plan.codec == "none":
                self._write(place, encoded, rank * (encoded.size + CHECKSUM_BYTES))
            else:
                self._write_in_turn(rank, place, encoded)
        except OSError as error:
            raise self._failure(f"writing chunk {chunk} of", error) from error

    def close(self) -> WrittenShard:
        """Write the index, flush the file, and say what was written.

        Raises
        ------
        WorkFailed
            A chunk inside the array was never appended, or writing failed; the file is removed.
        """
        if self._appended != self._total:
            self.abort()
            missing = self._total - self._appended
            raise WorkFailed(f"{self.path}: {missing} of {self._total} chunks were never written")
        try:
            self._file.write([memoryview(encode_index(self._index))], self._file.end)
            digest = self._file.finish()
        except OSError as error:
            self.abort()
            raise self._failure("finishing", error) from error
        return WrittenShard(self.path, self._file.path, digest, self._file.end)

    def abort(self) -> None:
        """Give up and remove the file; nothing happens after `close`."""
        self._waiting.clear()
        self._file.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()

    def _place(self, chunk: Index) -> tuple[int, int]:
        """Place among the chunks inside the array, and in the index."""
        if len(chunk) != len(self._counts) or not _inside(chunk, self._counts):
            raise RequestError(f"{self.path}: no chunk {chunk} among {self._counts} in the array")
        place = flat_index(chunk, self.plan.chunks_per_shard)
        if self._index[place, 0] != MISSING:
            raise RequestError(f"{self.path}: chunk {chunk} was already written")
        return flat_index(chunk, self._counts), place

    def _padded(self, chunk: Index, data: Array) -> Array:
        """The values of a whole chunk as contiguous bytes; the caller's memory where possible."""
        dtype = self.plan.numpy_dtype
        if data.dtype != dtype:
            if self.plan.dtype != "bfloat16" or data.dtype not in (np.uint16, np.int16):
                raise RequestError(f"{self.path}: {data.dtype} values for a {dtype} array")
            data = data.view(dtype)
        full = self.plan.chunk
        inside = tuple(min(c, n - i * c) for i, c, n in zip(chunk, full, self._shape, strict=True))
        if data.shape not in (full, inside):
            raise RequestError(f"{self.path}: chunk {chunk} has shape {inside}, not {data.shape}")
        if data.shape != full:
            padded = np.full(full, self.plan.fill, dtype)
            padded[tuple(map(slice, inside))] = data
            data = padded
        return np.ascontiguousarray(data).reshape(-1).view(np.uint8)

    def _write_in_turn(self, rank: int, place: int, encoded: Array) -> None:
        self._waiting[rank] = place, encoded
        turn = self._appended - len(self._waiting)
        while turn in self._waiting:
            self._write(*self._waiting.pop(turn), self._file.end)
            turn += 1

    def _write(self, place: int, encoded: Array, offset: int) -> None:
        self._file.write([encoded.data, memoryview(checksum(encoded))], offset)
        self._index[place] = offset, encoded.size + CHECKSUM_BYTES

    def _failure(self, action: str, error: OSError) -> WorkFailed:
        reason = error.strerror or str(error)
        return WorkFailed(f"{action} {self.path} at {self._temporary}: {reason}")


def write_shard(plan: ArrayPlan, shard: Index, data: Array, temporary: Path) -> WrittenShard:
    """Write a whole shard from memory.

    Every chunk is written, also one that holds only fill values: Zarr's writers leave such chunks
    out, but here an absent chunk would look like lost data, and rows of a failed document are NaN.

    Parameters
    ----------
    plan, shard, temporary
        As for `ShardWriter`.
    data
        The shard's values in its shape, at the array's border only what lies inside.

    Raises
    ------
    RequestError, WorkFailed
        As `ShardWriter`.
    """
    with ShardWriter(plan, shard, temporary) as writer:
        if data.shape != plan.shard_shape(writer.shard):
            expected = plan.shard_shape(writer.shard)
            raise RequestError(f"{writer.path}: the shard has shape {expected}, not {data.shape}")
        for chunk in itertools.product(*map(range, plan.shard_chunks(writer.shard))):
            where = tuple(slice(i * c, (i + 1) * c) for i, c in zip(chunk, plan.chunk, strict=True))
            writer.append(chunk, data[where])
        return writer.close()


def check_aligned(plan: ArrayPlan, first_row: int, last_row: int) -> None:
    """Refuse a range of rows that is no whole number of shards.

    Parameters
    ----------
    plan
        The array.
    first_row, last_row
        The first row, and one past the last.

    Raises
    ------
    RequestError
        The range shares a shard with other rows; two writers of one shard lose data in silence.
    """
    length, rows = plan.shard[plan.row_axis], plan.shape[plan.row_axis]
    aligned = first_row % length == 0 and (last_row % length == 0 or last_row == rows)
    if not (aligned and 0 <= first_row < last_row <= rows):
        raise RequestError(
            f"{plan.path}: rows {first_row} to {last_row - 1} are no whole shards of {length} rows"
            f" (of {rows}); two writers of one shard would lose data, so start and end at multiples"
            f" of {length}"
        )


def _inside(index: Index, grid: tuple[int, ...]) -> bool:
    return all(0 <= i < n for i, n in zip(index, grid, strict=True))
