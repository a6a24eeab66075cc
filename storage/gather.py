"""Filling an array from shard files: which bytes to read, in which order, and where they go.

A chunk is read whole, and its checksum checked, when all of it is wanted, when it is compressed, or
when what is wanted of it lies so scattered that reading it whole is cheaper. Of other chunks only
the wanted bytes are read, without a checksum. Positions are computed for a whole shard at once in
numpy, since a scattered selection is tens of thousands of reads of a kilobyte.

Values go from the file to their place in the answer by the system call itself wherever they are
contiguous in both. Neighbouring reads share a call. Scattered reads are tried in the page cache
first while the disk is asked for what is not there, so that many requests wait together, not one by
one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import ArrayPlan
from .errors import WorkFailed
from .selection import Axis, Cut, Positions
from .shard_files import ShardFile, damage, open_shard
from .sharding import CHECKSUM_BYTES, MISSING, checksum, decode, strides

Array = NDArray[Any]
Wanted = NDArray[np.bool_]

#: Bytes of neighbouring chunks read by one call; their checksums then find them in the CPU's cache.
GROUP_BYTES = 2 << 20
#: Neighbouring chunks read by one call: two buffers each, and Linux takes 1,024 buffers.
GROUP_CHUNKS = 512
#: What a scattered read costs at least: the disk moves whole pages.
PAGE_BYTES = 4 << 10
#: Scattered reads that may wait for the disk together; bounds the files held open.
WAITING_READS = 1 << 14


@dataclass(frozen=True)
class Source:
    """An open shard and what is selected of it along every axis."""

    path: str
    file: ShardFile
    cuts: tuple[Cut, ...]


class Gather:
    """Fills an array from shards; `finish` must be called at the end.

    Parameters
    ----------
    root, plan
        The store and the array.
    axes
        What is selected along every axis.
    out
        The answer: their counts as its shape, the array's dtype, C-contiguous.
    missing_is_fill
        Whether a shard without a file holds fill values; it is damage otherwise.
    """

    def __init__(
        self, root: Path, plan: ArrayPlan, axes: list[Axis], out: Array, missing_is_fill: bool
    ) -> None:
        self._root, self._plan, self._out, self._missing_is_fill = root, plan, out, missing_is_fill
        self._bytes = out.reshape(-1).view(np.uint8)
        self._fill = np.asarray(plan.fill).reshape(1).view(np.uint8)
        item = plan.numpy_dtype.itemsize
        self._out_steps = [step * item for step in strides(out.shape)]
        self._chunk_steps = [step * item for step in strides(plan.chunk)]
        self._index_steps = strides(plan.chunks_per_shard)
        # Axes after this one are wanted whole and lie in one chunk, so a run along this axis is
        # contiguous in the file and in the answer.
        last = len(axes) - 1
        while last > 0 and axes[last].everything and plan.chunk[last] == axes[last].length:
            last -= 1
        self._run_axis = last
        self._straight = all(length == 1 for length in plan.chunk[:last])
        self._waiting: list[tuple[Source, list[memoryview], int]] = []

    def shard(self, cuts: tuple[Cut, ...]) -> None:
        """Read what is selected of one shard.

        Raises
        ------
        Damage
            The file is missing, cut short or damaged.
        WorkFailed
            The file cannot be read.
        """
        path = self._plan.shard_file(tuple(cut.shard for cut in cuts))
        try:
            source = Source(path, open_shard(self._root, self._plan, path), cuts)
            whole = self._whole(cuts)
            self._read_chunks(source, whole)
            if not whole.all():
                self._read_runs(source, ~whole)
        except FileNotFoundError as error:
            if not self._missing_is_fill:
                raise damage(self._root, path, "the file is missing") from error
            self._out[tuple(cut.out for cut in cuts)] = self._plan.fill
        except ValueError as error:
            raise damage(self._root, path, str(error)) from error
        except OSError as error:
            raise WorkFailed(f"reading {self._root / path}: {error.strerror}") from error
        if len(self._waiting) > WAITING_READS:
            self.finish()

    def finish(self) -> None:
        """Wait for the scattered reads that the disk was asked for.

        Raises
        ------
        Damage, WorkFailed
            As `shard`.
        """
        for source, buffers, offset in self._waiting:
            try:
                source.file.read(buffers, offset)
            except ValueError as error:
                raise damage(self._root, source.path, str(error)) from error
            except OSError as error:
                raise WorkFailed(f"reading {self._root / source.path}: {error.strerror}") from error
        self._waiting.clear()

    def _whole(self, cuts: tuple[Cut, ...]) -> Wanted:
        """Which chunks to read whole, by part of every axis."""
        full = functools.reduce(np.logical_and.outer, [cut.full for cut in cuts])
        if self._plan.codec != "none":
            return np.ones_like(full)
        cut = cuts[self._run_axis]
        run_bytes = np.maximum(cut.runs.count * self._chunk_steps[self._run_axis], PAGE_BYTES)
        cost = np.add.reduceat(run_bytes, cut.first_run[:-1])
        reads = np.diff(cut.first_run)
        for other in reversed(cuts[: self._run_axis]):
            cost = np.multiply.outer(other.count, cost)
            reads = np.multiply.outer(other.count, reads)
        scattered = (reads > 1) & (2 * cost >= self._plan.chunk_nbytes)
        return np.asarray(full | scattered.reshape(full.shape))

    def _read_runs(self, source: Source, wanted: Wanted) -> None:
        """Read only the wanted bytes of these chunks."""
        axes = range(self._run_axis + 1)
        cuts = source.cuts[: self._run_axis + 1]
        runs = [cut.runs if a == self._run_axis else cut.runs.single for a, cut in enumerate(cuts)]
        parts = [
            np.searchsorted(cut.chunks, run.chunk) for cut, run in zip(cuts, runs, strict=True)
        ]
        chosen = wanted.reshape(wanted.shape[: len(cuts)])[np.ix_(*parts)].ravel()
        place = _outer([runs[a].chunk * self._index_steps[a] for a in axes])[chosen]
        inside = _outer([runs[a].start * self._chunk_steps[a] for a in axes])[chosen]
        target = _outer([runs[a].out * self._out_steps[a] for a in axes])[chosen]
        length = np.broadcast_to(
            runs[-1].count * self._chunk_steps[self._run_axis], [len(run) for run in runs]
        ).ravel()[chosen]
        chunk = source.file.index[place, 0]
        absent = chunk == MISSING
        for start, size in zip(target[absent].tolist(), length[absent].tolist(), strict=True):
            self._bytes[start : start + size].reshape(-1, self._fill.size)[:] = self._fill
        begin = chunk[~absent].astype(np.int64) + inside[~absent]
        order = np.argsort(begin, kind="stable")
        late = source.file.read_pieces(
            self._bytes.data, begin[order], target[~absent][order], length[~absent][order]
        )
        self._waiting += [(source, buffers, offset) for buffers, offset in late]

    def _read_chunks(self, source: Source, wanted: Wanted) -> None:
        """Read these chunks whole, check them, and put what is selected of them in its place."""
        parts = np.argwhere(wanted)
        place = np.zeros(len(parts), np.int64)
        for axis, cut in enumerate(source.cuts):
            place += cut.chunks[parts[:, axis]] * self._index_steps[axis]
        index = source.file.index[place]
        order = np.argsort(index[:, 0], kind="stable")
        present = order[index[order, 0] != MISSING]
        for part in parts[order[len(present) :]].tolist():
            self._out[self._where(source.cuts, part)[1]] = self._plan.fill
        begin = index[present, 0].astype(np.int64)
        end = begin + index[present, 1].astype(np.int64)
        first = 0
        while first < len(present):
            last = first + 1
            while (
                last < len(present)
                and last - first < GROUP_CHUNKS
                and begin[last] == end[last - 1]
                and end[last] - begin[first] <= GROUP_BYTES
            ):
                last += 1
            some = present[first:last]
            self._read_group(source, parts[some], place[some], index[some])
            first = last

    def _read_group(
        self, source: Source, parts: Positions, places: Positions, index: NDArray[np.uint64]
    ) -> None:
        """Read chunks that stand behind one another in the file, by one call."""
        checks = np.empty((len(parts), CHECKSUM_BYTES), np.uint8)
        chunks: list[Array] = []
        targets: list[Array | None] = []
        buffers: list[memoryview] = []
        lengths = (index[:, 1].astype(np.int64) - CHECKSUM_BYTES).tolist()
        for part, length, check in zip(parts, lengths, checks, strict=True):
            target = self._target(source.cuts, part)
            direct = target is not None and self._plan.codec == "none"
            chunk = target if direct and target is not None else np.empty(length, np.uint8)
            chunks.append(chunk)
            targets.append(target)
            buffers += (chunk.data, check.data)
        source.file.read(buffers, int(index[0, 0]))
        for part, place, chunk, target, check in zip(
            parts, places, chunks, targets, checks, strict=True
        ):
            if checksum(chunk) != check.tobytes():
                position = np.unravel_index(place, self._plan.chunks_per_shard)
                raise ValueError(f"chunk {tuple(map(int, position))} fails its checksum")
            if chunk is not target:
                self._place(source.cuts, part, chunk, target)

    def _target(self, cuts: tuple[Cut, ...], part: Positions) -> Array | None:
        """The bytes of the answer that are one chunk as it stands, if there are such."""
        if not self._straight:
            return None
        start = 0
        for axis, (cut, number) in enumerate(zip(cuts, part.tolist(), strict=True)):
            if cut.count[number] != self._plan.chunk[axis]:
                return None
            start += int(cut.begin[number]) * self._out_steps[axis]
        return self._bytes[start : start + self._plan.chunk_nbytes]

    def _place(
        self, cuts: tuple[Cut, ...], part: Positions, chunk: Array, target: Array | None
    ) -> None:
        """Decode a chunk and put what is selected of it in its place."""
        if target is not None:
            decode(self._plan.codec, chunk, target)
            return
        if self._plan.codec != "none":
            decoded = np.empty(self._plan.chunk_nbytes, np.uint8)
            decode(self._plan.codec, chunk, decoded)
            chunk = decoded
        values = chunk.view(self._plan.numpy_dtype).reshape(self._plan.chunk)
        inside, out = self._where(cuts, part.tolist())
        for axis, selected in enumerate(inside):
            values = values[(slice(None),) * axis + (selected,)]
        self._out[out] = values

    def _where(
        self, cuts: tuple[Cut, ...], part: list[int]
    ) -> tuple[list[slice | Positions], tuple[slice, ...]]:
        """What is selected of a part, inside its chunk and in the answer."""
        pairs = [cut.part(number) for cut, number in zip(cuts, part, strict=True)]
        return [inside for inside, _ in pairs], tuple(out for _, out in pairs)


def _outer(terms: list[Positions]) -> Positions:
    """The sum of one term of each array, for every combination in C order."""
    return np.asarray(functools.reduce(np.add.outer, terms)).ravel()
