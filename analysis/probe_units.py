"""The vectors that probes are trained and tested on, a block at a time.

A unit is the last row of a document, the mean of its content rows, or one content row. Rows of
documents that failed and rows with a value that is not finite are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

from .geometry_rows import BLOCK_ROWS, RowBlock, RowReader
from .per_document import Documents
from .probe_labels import Labels
from .rows import RowAxis
from .store import Run

Float32 = NDArray[np.float32]
Integers = NDArray[np.int64]
Pool = Literal["last", "mean", "each"]


@dataclass(frozen=True, eq=False)
class Units:
    """Some labelled vectors.

    Attributes
    ----------
    x
        (points, units, hidden) float32, the points that were asked for.
    document
        Place of each unit's document among the labels' documents.
    label, control
        Its class in the task and in the control task.
    """

    x: Float32
    document: Integers
    label: Integers
    control: Integers


@dataclass(frozen=True, eq=False)
class UnitReader:
    """Reads labelled vectors.

    Attributes
    ----------
    rows
        The rows that are needed; ``rows.axis`` says which.
    labels
        What they are labelled with.
    pool
        What a unit is.
    groups
        For ``mean``, ranges of corpus rows that hold whole documents; one block each.
    """

    rows: RowReader
    labels: Labels
    pool: Pool
    groups: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, run: Run, labels: Labels, pool: Pool) -> UnitReader:
        """Find the rows.

        Raises
        ------
        RequestError
            ``last`` is wanted and no document's last row is stored.
        """
        axis = run.stored("residual").axis
        documents = Documents.on(run.snapshots, axis)
        taking = np.isin(documents.number, labels.documents)
        if pool == "last":
            ends = documents.end_row[taking] - 1
            run = run.at(ends)
            if not len(run.stored("residual").axis):
                raise RequestError(
                    f"{run.snapshots[0].root} stores no document's last row: take --pool mean, "
                    "or extract with rows that hold it"
                )
        groups: list[tuple[int, int]] = []
        if pool == "mean":
            first, end = documents.first_row[taking], documents.end_row[taking]
            # A long document is a block by itself, and read in parts.
            held = np.cumsum(end - first) // BLOCK_ROWS
            for mine in np.split(np.arange(len(first)), np.flatnonzero(np.diff(held)) + 1):
                if len(mine):
                    groups.append((int(first[mine[0]]), int(end[mine[-1]])))
        return cls(RowReader.of(run), labels, pool, tuple(groups))

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return len(self.groups) if self.pool == "mean" else self.rows.blocks

    @cached_property
    def hidden(self) -> int:
        """Dimensions of the vectors."""
        return int(self.rows.residual.shape[-1])

    def read(self, blocks: range, points: range) -> Iterator[Units]:
        """Blocks by number, at points by number."""
        if self.pool == "mean":
            for number in blocks:
                yield self._means(number, points)
            return
        for block in self.rows.read(blocks, points):
            found = self._labelled(self.rows, block)
            chosen = found[1] >= 0
            if self.pool == "each":
                chosen &= block.content
            yield Units(block.h[:, chosen], *(values[chosen] for values in found))

    def _means(self, number: int, points: range) -> Units:
        axis = RowAxis(tuple(self.rows.axis.between(*self.groups[number])))
        rows = replace(self.rows, residual=replace(self.rows.residual, axis=axis))
        sums: dict[int, NDArray[np.float64]] = {}
        counts: dict[int, int] = {}
        labels: dict[int, tuple[int, int]] = {}
        for block in rows.read(range(rows.blocks), points):
            found = self._labelled(rows, block)
            chosen = np.flatnonzero((found[1] >= 0) & block.content)
            if not len(chosen):
                continue
            document, label, control = (values[chosen] for values in found)
            at, starts = np.unique(document, return_index=True)
            added = np.add.reduceat(block.h[:, chosen], starts, axis=1, dtype=np.float64)
            sizes = np.diff([*starts, len(chosen)])
            for place, (one, start) in enumerate(zip(at.tolist(), starts, strict=True)):
                sums[one] = sums.get(one, 0) + added[:, place]
                counts[one] = counts.get(one, 0) + int(sizes[place])
                labels[one] = int(label[start]), int(control[start])
        x = np.zeros((len(points), len(sums), self.hidden), np.float32)
        for place, one in enumerate(sums):
            x[:, place] = sums[one] / counts[one]
        both = np.array(list(labels.values()), dtype=np.int64).reshape(-1, 2)
        return Units(x, np.array(list(sums), dtype=np.int64), both[:, 0], both[:, 1])

    def _labelled(self, rows: RowReader, block: RowBlock) -> tuple[Integers, Integers, Integers]:
        """Document, class and control class of a block's rows."""
        if not self.labels.of_tokens:
            return self.labels.of({"document": block.document})
        first = block.number * BLOCK_ROWS
        last = min(len(rows.axis), first + BLOCK_ROWS)
        found = rows.columns.read(list(rows.axis.cut(first, last)), self.labels.columns)
        kept = np.searchsorted(rows.axis.index[first:last], block.row)
        return self.labels.of({name: values[kept] for name, values in found.items()})
