"""Orthogonal selections, cut at the borders of chunks and shards.

Each axis is selected by an integer, a slice or an array, independently of the others. It is brought
into ascending order first, so that a file is read once and forwards; `Axis.order` puts it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import RequestError

Positions = NDArray[np.int64]
Select = int | np.integer[Any] | slice | NDArray[Any] | Sequence[int]


@dataclass(frozen=True)
class Runs:
    """Consecutive selected positions of an axis, none of which crosses a chunk's border.

    Attributes
    ----------
    chunk
        Number of the chunk of each run, ascending.
    start
        First position inside that chunk.
    count
        Positions in the run.
    out
        Where the run begins in the answer.
    """

    chunk: Positions
    start: Positions
    count: Positions
    out: Positions

    def __getitem__(self, some: slice) -> Runs:
        return Runs(self.chunk[some], self.start[some], self.count[some], self.out[some])

    def __len__(self) -> int:
        return len(self.chunk)

    @property
    def single(self) -> Runs:
        """The same positions as runs of one each."""
        within = _ramp(self.count)
        chunk, start, out = (np.repeat(a, self.count) for a in (self.chunk, self.start, self.out))
        return Runs(chunk, start + within, np.ones_like(chunk), out + within)


@dataclass(frozen=True)
class Axis:
    """What is selected along one axis.

    Attributes
    ----------
    length
        Length of the axis.
    runs
        The distinct positions, ascending.
    count
        How many they are.
    order
        For every position asked for, its place among the distinct ones; None if they were asked for
        in just this order.
    dropped
        Selected by an integer, so the answer lacks this axis.
    """

    length: int
    runs: Runs
    count: int
    order: Positions | None
    dropped: bool

    @property
    def everything(self) -> bool:
        """Whether the whole axis is selected."""
        return self.count == self.length


def select_axis(select: Select, length: int, chunk: int, name: str) -> Axis:
    """Resolve the selection of one axis.

    Parameters
    ----------
    select
        An integer, a slice, or an array of integers (negative ones count from the end) or booleans.
    length, chunk
        Length of the axis and of its chunks.
    name
        The axis for messages, such as ``activations.zarr/residual: row``.

    Raises
    ------
    RequestError
        A position lies outside the axis, or the selection is of another kind.
    """
    if isinstance(select, slice):
        first, stop, step = select.indices(length)
        if step == 1:
            return Axis(length, _range_runs(first, stop, chunk), max(0, stop - first), None, False)
        wanted = np.arange(first, stop, step, dtype=np.int64)
        dropped = False
    else:
        wanted = np.asarray(select)
        dropped = wanted.ndim == 0
        wanted = _positions(wanted, length, name)
    order: Positions | None = None
    distinct = wanted
    if (np.diff(wanted) <= 0).any():
        distinct, order = np.unique(wanted, return_inverse=True)
    return Axis(length, _array_runs(distinct, chunk), len(distinct), order, dropped)


@dataclass(frozen=True)
class Cut:
    """What is selected along one axis within one shard, in parts that lie in one chunk each.

    Attributes
    ----------
    shard
        Number of the shard along the axis.
    runs
        The selected runs; chunks are numbered within the shard.
    chunks
        Chunk of each part.
    first_run
        First run of each part, and one past the last run of all.
    begin, count
        Where each part begins in the answer, and how many positions it has.
    full
        Whether each part is all of its chunk that lies inside the array.
    """

    shard: int
    runs: Runs
    chunks: Positions
    first_run: Positions
    begin: Positions
    count: Positions
    full: NDArray[np.bool_]

    @property
    def out(self) -> slice:
        """What the shard contributes to the answer along this axis."""
        return slice(int(self.begin[0]), int(self.begin[-1] + self.count[-1]))

    def part(self, number: int) -> tuple[slice | Positions, slice]:
        """Positions of a part inside its chunk, and in the answer."""
        runs = self.runs[int(self.first_run[number]) : int(self.first_run[number + 1])]
        begin, count = int(self.begin[number]), int(self.count[number])
        out = slice(begin, begin + count)
        if len(runs) == 1:
            return slice(int(runs.start[0]), int(runs.start[0]) + count), out
        return runs.single.start, out


def cut_axis(axis: Axis, chunk: int, chunks_per_shard: int) -> list[Cut]:
    """Cut an axis at the borders of its shards."""
    runs = axis.runs
    cuts: list[Cut] = []
    if not len(runs):
        return cuts
    shards, first = np.unique(runs.chunk // chunks_per_shard, return_index=True)
    for shard, begin, end in zip(
        shards.tolist(), first.tolist(), [*first.tolist()[1:], len(runs)], strict=True
    ):
        own = runs[begin:end]
        chunks, first_run = np.unique(own.chunk, return_index=True)
        count = np.add.reduceat(own.count, first_run)
        full = count == np.minimum(chunk, axis.length - chunks * chunk)
        base = shard * chunks_per_shard
        local = Runs(own.chunk - base, own.start, own.count, own.out)
        bounds = np.append(first_run, len(own))
        cuts.append(Cut(shard, local, chunks - base, bounds, own.out[first_run], count, full))
    return cuts


def _positions(wanted: NDArray[Any], length: int, name: str) -> Positions:
    if wanted.ndim > 1:
        raise RequestError(f"{name} must be selected by an integer, a slice or a flat array")
    wanted = np.atleast_1d(wanted)
    if wanted.dtype == bool:
        if len(wanted) != length:
            raise RequestError(f"{name} has {length} positions, the mask {len(wanted)}")
        return np.flatnonzero(wanted)
    if wanted.size == 0:
        return np.empty(0, np.int64)
    if not np.issubdtype(wanted.dtype, np.integer):
        raise RequestError(f"{name} cannot be selected by {wanted.dtype} values; give integers")
    wanted = wanted.astype(np.int64)
    outside = (wanted < -length) | (wanted >= length)
    if outside.any():
        raise RequestError(f"{name} {wanted[outside][0]} is outside 0 to {length - 1}")
    return np.where(wanted < 0, wanted + length, wanted)


def _range_runs(first: int, stop: int, chunk: int) -> Runs:
    if stop <= first:
        return _array_runs(np.empty(0, np.int64), chunk)
    chunks = np.arange(first // chunk, (stop - 1) // chunk + 1, dtype=np.int64)
    begin = np.maximum(chunks * chunk, first)
    end = np.minimum((chunks + 1) * chunk, stop)
    return Runs(chunks, begin - chunks * chunk, end - begin, begin - first)


def _array_runs(distinct: Positions, chunk: int) -> Runs:
    chunks = distinct // chunk
    breaks = (np.diff(distinct) != 1) | (np.diff(chunks) != 0)
    out = np.flatnonzero(np.concatenate((np.ones(min(1, len(distinct)), bool), breaks)))
    count = np.diff(np.append(out, len(distinct)))
    return Runs(chunks[out], distinct[out] - chunks[out] * chunk, count, out)


def _ramp(counts: Positions) -> Positions:
    """0..n-1 for every n of ``counts``, joined."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) - np.repeat(ends - counts, counts)
