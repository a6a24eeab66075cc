"""Blocks of rows at all points, read ahead, with what each row is; and a first look at a few.

Rows of documents that failed and rows with a value that is not finite are left out and counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from depthscope.storage.shard_reader import widen
from numpy.typing import NDArray

from .map_rows import PILOT_ROWS, PILOT_STRETCHES, ahead
from .rows import RowAxis
from .store import Run
from .stored_arrays import StoredArray
from .token_columns import TokenColumns

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

#: Rows of a block: those that blocks of CKA are drawn from.
BLOCK_ROWS = 2048


@dataclass(frozen=True, eq=False)
class RowBlock:
    """Some usable rows.

    Attributes
    ----------
    number
        Which block of the run it is, from 0.
    h
        (points, rows, hidden) float32, the points that were asked for.
    row, document, position
        Of every row.
    content
        Which rows are neither first of their document nor special tokens.
    last
        Which rows are the last of their document.
    invalid, nonfinite
        Rows that were left out, by reason.
    """

    number: int
    h: Float32
    row: NDArray[np.int64]
    document: NDArray[np.int64]
    position: NDArray[np.int64]
    content: NDArray[np.bool_]
    last: NDArray[np.bool_]
    invalid: int
    nonfinite: int

    @property
    def sets(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Rows of the content tokens, and all others; together they are the set ``all``."""
        return self.content, ~self.content


@dataclass(frozen=True, eq=False)
class RowReader:
    """Reads blocks of rows at some points.

    Attributes
    ----------
    residual
        The residual stream.
    columns
        The token table along its rows.
    ends
        For each document, the row after its last, by number; rows of others are never last.
    """

    residual: StoredArray
    columns: TokenColumns
    documents: NDArray[np.int64]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, run: Run) -> RowReader:
        """The stored rows of a run."""
        from .per_document import Documents

        residual = run.stored("residual")
        documents = Documents.on(run.snapshots, residual.axis)
        columns = run.columns(residual.axis)
        return cls(residual, columns, documents.number, documents.end_row)

    @property
    def axis(self) -> RowAxis:
        """The rows."""
        return self.residual.axis

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return -(-len(self.axis) // BLOCK_ROWS)

    def read(self, blocks: range, points: range) -> Iterator[RowBlock]:
        """Blocks by number, at points by number; the next is read while one is worked on."""
        return ahead(lambda number: self._read(number, points), blocks)

    def _read(self, number: int, points: range) -> RowBlock:
        first = number * BLOCK_ROWS
        last = min(len(self.axis), first + BLOCK_ROWS)
        h = np.empty((len(points), last - first, self.residual.shape[-1]), np.float32)
        for at, point in enumerate(points):
            h[at] = widen(self.residual[point, slice(first, last), slice(None)])
        names = ["document", "position", "special", "valid"]
        tokens = self.columns.read(list(self.axis.cut(first, last)), names)
        row = np.asarray(self.axis.index[first:last], dtype=np.int64)
        finite = np.isfinite(h).all(axis=(0, 2))
        kept = tokens["valid"] & finite
        if not kept.all():
            h = h[:, kept]
        document = tokens["document"][kept]
        ends = self.ends[np.searchsorted(self.documents, document)]
        return RowBlock(
            number=number,
            h=h,
            row=row[kept],
            document=document,
            position=tokens["position"][kept].astype(np.int64),
            content=((tokens["position"] > 0) & ~tokens["special"])[kept],
            last=row[kept] + 1 == ends,
            invalid=int((~tokens["valid"]).sum()),
            nonfinite=int((tokens["valid"] & ~finite).sum()),
        )


@dataclass(frozen=True, eq=False)
class Look:
    """What a few content rows, spread evenly, say about every point.

    Attributes
    ----------
    mean
        (points, hidden) float32, near the mean: where moments are centred before products.
    magnitude
        (points,): median of the values' magnitudes.
    """

    mean: Float32
    magnitude: Float64

    @classmethod
    def of(cls, reader: RowReader) -> Look:
        """Read up to 1,024 rows at all points."""
        axis, size = reader.axis, PILOT_ROWS // PILOT_STRETCHES
        starts = np.linspace(0, max(len(axis) - size, 0), PILOT_STRETCHES).astype(np.int64)
        places = np.unique(starts[:, None] + np.arange(size))
        places = places[places < len(axis)]
        pieces = [piece for piece, _ in axis.take(places)]
        tokens = reader.columns.read(pieces, ["position", "special", "valid"])
        content = tokens["valid"] & (tokens["position"] > 0) & ~tokens["special"]
        chosen = places[content] if content.any() else places[tokens["valid"]]
        points, hidden = reader.residual.shape[0], reader.residual.shape[-1]
        mean, magnitude = np.zeros((points, hidden), np.float32), np.full(points, np.nan)
        for point in range(points):
            values = widen(reader.residual[point, chosen, slice(None)])
            values = values[np.isfinite(values).all(axis=1)]
            if len(values):
                mean[point] = np.median(values, axis=0)
                magnitude[point] = np.median(np.abs(values))
        return cls(mean, magnitude)
