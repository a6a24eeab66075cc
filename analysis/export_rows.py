"""The rows of a store with their vectors, in order or globally shuffled, a batch at a time.

**Shuffle.** Every row draws a 64-bit key from ``numpy.random.PCG64(seed)``, in the order of the
rows; the rows leave in the order of their keys (equal keys, of which n rows have about n²/2^65
pairs, in the order of the rows). All orders are equally likely, and the order depends on seed and
rows alone, not on memory or the kind of file. Memory is bounded by two passes: the first reads the
store once, front to back, and appends each row to one of B bucket files by the leading bits of its
key; the second reads bucket by bucket, sorts it by key and sends it on. Where one bucket holds
everything nothing is written in between.

Cost: every byte is read once from the store in long reads; with more than one bucket it is also
written and read once beside the output, which takes as much room there as the rows themselves.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

from .rows import Piece, RowAxis
from .store import Run
from .stored_arrays import StoredArray
from .vectors import stored_places

#: What says which row of which document a vector belongs to, and its token.
IDENTITY = ("row", "document", "position", "token_id")

#: Bucket files at most; each gets its own writes, so more would make these short.
MOST_BUCKETS = 4096
#: Bytes of rows that are read at a time.
_BLOCK = 64 << 20

Records = NDArray[Any]


@dataclass(frozen=True)
class RowSource:
    """What is exported: the visible rows that have activations and did not fail.

    Attributes
    ----------
    run
        The opened store, restricted to the wanted rows.
    points
        Whose vectors travel with a row (layers, of another array); empty for none.
    array
        Which array's vectors these are.
    """

    run: Run
    points: tuple[int, ...]
    array: str = "residual"

    @cached_property
    def axis(self) -> RowAxis:
        """The rows that have activations; without points, all rows."""
        return self.run.axis("activations" if self.points else "tokens")

    @cached_property
    def vectors(self) -> StoredArray:
        """The stored vectors."""
        return self.run.stored(self.array)

    @cached_property
    def _stored_at(self) -> list[int]:
        """Where the array has the wanted points."""
        stored = stored_places(self.run, self.array)
        return [stored.index(point) for point in self.points]

    @property
    def vector_dtype(self) -> np.dtype[Any]:
        """Data type of the vectors, as stored."""
        return self.vectors.dtype if self.points else np.dtype(np.float32)

    @property
    def hidden(self) -> int:
        """Length of a vector."""
        return self.vectors.shape[-1] if self.points else 0

    @cached_property
    def record(self) -> np.dtype[Any]:
        """One row: its key, what identifies it, and the bits of its vectors (point, hidden)."""
        bits = np.dtype(f"u{self.vector_dtype.itemsize}")
        return np.dtype(
            [
                ("key", "<u8"),
                ("row", "<i8"),
                ("document", "<i8"),
                ("position", "<i4"),
                ("token_id", "<i4"),
                ("vector", bits, (len(self.points), self.hidden)),
            ]
        )

    def blocks(self) -> Iterator[Records]:
        """The valid rows in order, a block of records at a time; their keys are zero."""
        axis, columns = self.axis, self.run.columns(self.axis)
        size = max(1, _BLOCK // self.record.itemsize)
        names = ["document", "position", "token_id", "valid"]
        for length, first in _spans(axis.blocks(size)):
            for piece in axis.cut(first, first + length):
                found = columns.read([piece], names)
                valid = found.pop("valid")
                out = np.zeros(len(piece), self.record)
                out["row"] = np.asarray(piece.rows, dtype=np.int64)
                for name, values in found.items():
                    out[name] = values
                if self.points:
                    self._fill(out, piece)
                if valid.any():
                    yield out[valid]

    def _fill(self, out: Records, piece: Piece) -> None:
        bits = out.dtype["vector"].base
        for place, number in enumerate(self._stored_at):
            out["vector"][:, place] = self.vectors.read(piece, number).view(bits)


def in_order(source: RowSource) -> Iterator[Records]:
    """The rows as they stand in the store."""
    return source.blocks()


def shuffled(source: RowSource, seed: int, memory: int, scratch: Path) -> Iterator[Records]:
    """The rows in the order of their keys.

    Parameters
    ----------
    seed
        Decides the order, together with the rows.
    memory
        Bytes that rows may take in memory, about.
    scratch
        A folder that does not exist, with room for all rows; it is removed in the end.

    Raises
    ------
    RequestError
        So many buckets would be needed that it takes more memory.
    """
    size = len(source.axis) * source.record.itemsize
    # A bucket, its sorted copy and what is made of it for the file are in memory together.
    wanted = max(1, -(-size // max(1, memory // 4)))
    buckets = 1 << (wanted - 1).bit_length()
    if buckets > MOST_BUCKETS:
        needed = 4 * size // MOST_BUCKETS
        raise RequestError(
            f"to shuffle {size / 1e9:.0f} GB takes --memory {needed / 1e9:.0f}GB or more"
        )
    keyed = _keyed(source.blocks(), seed)
    if buckets == 1:
        whole = [*keyed]
        yield _sorted(np.concatenate(whole) if whole else np.empty(0, source.record))
        return
    try:
        scratch.mkdir(parents=True)
        _scatter(keyed, buckets, scratch)
        for bucket in range(buckets):
            file = scratch / f"{bucket:04d}"
            if file.exists():
                yield _sorted(np.fromfile(file, source.record))
                file.unlink()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def scratch_beside(out: Path) -> Path:
    """A name for the bucket files, on the disk that the output lies on."""
    return out.with_name(f".{out.name}.shuffling-{secrets.token_hex(4)}")


def counted(
    batches: Iterator[Records], total: int, on_progress: Callable[[int, int], None]
) -> Iterator[Records]:
    """The same batches, reported as they pass."""
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        on_progress(done, total)


def rebatched(batches: Iterator[Records], size: int) -> Iterator[Records]:
    """The same rows in batches of exactly ``size``, and a last one that is shorter."""
    waiting: list[Records] = []
    count = 0
    for batch in batches:
        first = 0
        while count + len(batch) - first >= size:
            until = first + size - count
            yield np.concatenate([*waiting, batch[first:until]])
            waiting, count, first = [], 0, until
        if first < len(batch):
            waiting.append(batch[first:])
            count += len(batch) - first
    if count:
        yield np.concatenate(waiting)


def _keyed(blocks: Iterator[Records], seed: int) -> Iterator[Records]:
    draw = np.random.PCG64(seed)
    for block in blocks:
        block["key"] = draw.random_raw(len(block))
        yield block


def _scatter(blocks: Iterator[Records], buckets: int, scratch: Path) -> None:
    shift = np.uint64(64 - (buckets.bit_length() - 1))
    for block in blocks:
        bucket = (block["key"] >> shift).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        numbers, firsts = np.unique(bucket[order], return_index=True)
        ends = [*firsts[1:].tolist(), len(order)]
        for number, first, end in zip(numbers.tolist(), firsts.tolist(), ends, strict=True):
            with (scratch / f"{number:04d}").open("ab") as file:
                file.write(block[order[first:end]].view(np.uint8).data)


def _sorted(records: Records) -> Records:
    return records[np.argsort(records["key"], kind="stable")]


def _spans(lengths: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Each length with the sum of those before it."""
    first = 0
    for length in lengths:
        yield length, first
        first += length
