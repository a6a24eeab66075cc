"""Blocks of paired rows, read ahead, with the rows that no map may learn from left out.

A row is left out where any of its vectors is not finite, or is *massive*: longer, at any point of
either store, than so many times the median length of the pilot rows at that point. A few such rows
would decide every least-squares fit. They are judged once, when all points of the row are read, and
set to zero after centring, which takes them out of every sum of products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from depthscope.storage.shard_reader import widen
from numpy.typing import NDArray

from .stored_arrays import StoredArray

Float32 = NDArray[np.float32]
Rows = NDArray[np.int64]
Piece = TypeVar("Piece")
Block = TypeVar("Block")

#: Blocks of rows are whole numbers of these; shuffled targets are shuffled inside one.
QUANTUM = 1024

#: Rows from which the centre and the usual length of the vectors at a point are taken.
PILOT_ROWS, PILOT_STRETCHES = 1024, 16


@dataclass(frozen=True, eq=False)
class Side:
    """The source or the target of the maps.

    Attributes
    ----------
    residual
        The residual stream of its run.
    points
        The points that take part.
    at
        Their places along the array's first axis.
    rows
        Place along the row axis of every pair of rows.
    """

    residual: StoredArray
    points: tuple[int, ...]
    at: tuple[int, ...]
    rows: Rows

    def __len__(self) -> int:
        return len(self.points)

    @property
    def width(self) -> int:
        """Dimensions of the residual stream."""
        return int(self.residual.shape[-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of all points of a row as they are stored."""
        return len(self) * self.width * self.residual.dtype.itemsize

    def read(self, number: int, pairs: Rows) -> NDArray[Any]:
        """Vectors of some pairs at the point of that number: (pairs, width), as stored."""
        return self.residual[self.at[number], self.rows[pairs], slice(None)]


@dataclass(frozen=True, eq=False)
class Pilot:
    """What a few training rows say about a side.

    Attributes
    ----------
    mean
        (points, width) float32: where blocks are centred before they are multiplied.
    length
        (points,): median Euclidean norm.
    """

    mean: Float32
    length: NDArray[np.float64]

    @classmethod
    def of(cls, side: Side, training: Rows, massive: float | None) -> Pilot:
        """Look at a few stretches of training rows, spread evenly."""
        chosen = _spread(training)
        mean = np.zeros((len(side), side.width), np.float32)
        length = np.zeros(len(side))
        for number in range(len(side)):
            values = widen(side.read(number, chosen))
            norms = _norms(values)
            usable = np.isfinite(norms)
            if usable.any():
                length[number] = np.median(norms[usable])
                if massive is not None:
                    usable &= norms <= massive * length[number]
                mean[number] = values[usable].mean(axis=0, dtype=np.float64)
        return cls(mean, length)


@dataclass(eq=False)
class RowMask:
    """Which pairs of rows take part, judged as blocks are read.

    Attributes
    ----------
    limits
        Largest norm for each point of the source and of the target.
    kept
        Every pair; false once it has been left out.
    massive, nonfinite
        Pairs left out so far, by reason.
    """

    limits: tuple[NDArray[np.float64], NDArray[np.float64]]
    kept: NDArray[np.bool_]
    massive: int = 0
    nonfinite: int = 0
    judged: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.judged = np.zeros(len(self.kept), np.bool_)

    def judge(self, pairs: Rows, sources: Sequence[Any], targets: Sequence[Any]) -> None:
        """Judge pairs by their vectors at every point."""
        finite = np.ones(len(pairs), np.bool_)
        short = np.ones(len(pairs), np.bool_)
        for values, limits in zip((sources, targets), self.limits, strict=True):
            for vectors, limit in zip(values, limits, strict=True):
                norms = _norms(widen(vectors))
                finite &= np.isfinite(norms)
                short &= ~(norms > limit)
        self.nonfinite += int((~finite).sum())
        self.massive += int((finite & ~short).sum())
        self.kept[pairs] = finite & short
        self.judged[pairs] = True


@dataclass(frozen=True, eq=False)
class PairBlock:
    """Some pairs of rows.

    Attributes
    ----------
    pairs
        Their numbers.
    kept
        Which of them take part.
    sources
        Vectors as stored, by number of the source's point; only the ones asked for.
    targets
        (pairs, points · width) float32: the wanted targets side by side, uncentred.
    """

    pairs: Rows
    kept: NDArray[np.bool_]
    sources: dict[int, NDArray[Any]]
    targets: Float32

    def source(self, number: int, mean: NDArray[Any]) -> Float32:
        """Vectors at a source point less a mean; zero where the row is left out."""
        return _centred(widen(self.sources[number]), mean, self.kept)

    def target(self, mean: NDArray[Any]) -> Float32:
        """The targets less their means, (points · width,); zero where the row is left out."""
        return _centred(self.targets, mean, self.kept)


@dataclass(frozen=True, eq=False)
class PairReader:
    """Reads blocks of paired rows.

    Attributes
    ----------
    source, target
        The two sides.
    mask
        Judges every pair the first time that it is read.
    block_rows
        Rows of a block.
    """

    source: Side
    target: Side
    mask: RowMask
    block_rows: int

    def blocks(
        self, pairs: Rows, sources: range | None = None, targets: range | None = None
    ) -> Iterator[PairBlock]:
        """The pairs in order, a block at a time; the next is read while one is worked on.

        Parameters
        ----------
        pairs
            Numbers of pairs.
        sources, targets
            Numbers of the points that are wanted; None for all.
        """
        size = self.block_rows
        pieces = [pairs[first : first + size] for first in range(0, len(pairs), size)]
        wanted = sources or range(len(self.source)), targets or range(len(self.target))
        return ahead(lambda piece: self._read(piece, *wanted), pieces)

    def _read(self, pairs: Rows, sources: range, targets: range) -> PairBlock:
        judged = bool(self.mask.judged[pairs].all())
        every = range(len(self.source)), range(len(self.target))
        read = (sources, targets) if judged else every
        found = {number: self.source.read(number, pairs) for number in read[0]}
        width = self.target.width
        joined = np.empty((len(pairs), len(targets) * width), np.float32)
        others = []
        for number in read[1]:
            values = self.target.read(number, pairs)
            if number in targets:
                place = (number - targets.start) * width
                joined[:, place : place + width] = widen(values)
                values = joined[:, place : place + width]
            others.append(values)
        if not judged:
            self.mask.judge(pairs, list(found.values()), others)
        return PairBlock(
            pairs, self.mask.kept[pairs], {number: found[number] for number in sources}, joined
        )


def ahead(read: Callable[[Piece], Block], pieces: Sequence[Piece]) -> Iterator[Block]:
    """Read pieces in order, one ahead of the caller."""
    with ThreadPoolExecutor(1) as reader:
        waiting = [reader.submit(read, piece) for piece in pieces[:1]]
        for number in range(len(pieces)):
            current = waiting.pop().result()
            if number + 1 < len(pieces):
                waiting.append(reader.submit(read, pieces[number + 1]))
            yield current
            del current


def _spread(rows: Rows) -> Rows:
    if len(rows) <= PILOT_ROWS:
        return rows
    size = PILOT_ROWS // PILOT_STRETCHES
    starts = np.linspace(0, len(rows) - size, PILOT_STRETCHES).astype(np.int64)
    return rows[np.unique(starts[:, None] + np.arange(size))]


def _norms(values: Float32) -> NDArray[np.float64]:
    """Norms of rows; sums in float64, since squares of massive values overflow."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.sqrt(np.einsum("nd,nd->n", values, values, dtype=np.float64)))


def _centred(values: Float32, mean: NDArray[Any], kept: NDArray[np.bool_]) -> Float32:
    with np.errstate(invalid="ignore"):
        centred = values - mean.astype(np.float32)
    if not kept.all():
        centred[~kept] = 0
    return centred
