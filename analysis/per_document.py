"""Per-document sums, counts and maxima of per-row values: the reduction behind every average here.

Documents are cut into blocks; one Dask task reduces one block, reading its rows a bounded slice at
a time and merging the slices' sums. The result is an array with one line per document, stored in
blocks, so that nothing is ever held whole and any other aggregate can be formed later. Cost: every
row is read once.

Rows of documents that failed are left out and counted, as are values that are not finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import dask
import dask.array as da
import numpy as np
import pyarrow.parquet as pq
from depthscope.storage.layout import StorePaths
from numpy.typing import NDArray

from .rows import Piece, RowAxis
from .snapshot import Snapshot
from .token_columns import TokenColumns

Values = NDArray[np.float64]

#: All rows; and those that are neither the first of their document nor special tokens.
TOKEN_SETS = ("all", "content")

#: What is kept of each value in each document.
REDUCTIONS = ("sum", "count", "max")

#: Bytes of a block of documents, at most and at least, and of the values of a slice of rows.
BLOCK_BYTES = 16 << 20
LEAST_BYTES = 64 << 10
SLICE_BYTES = 32 << 20


class RowValues(Protocol):
    """Where the values of rows come from; sent to the workers, so it must be picklable."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the values."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Inner shape of each value, such as (part, layer)."""

    @property
    def slice_rows(self) -> int:
        """Rows that fit into memory at a time."""

    @property
    def axis(self) -> RowAxis:
        """The rows that have values."""

    def read(self, piece: Piece) -> NDArray[Any]:
        """Values of the piece's rows: (names, *shape, rows), float32 or float64."""


@dataclass(frozen=True, eq=False)
class Documents:
    """The documents that have rows on an axis, ascending.

    Attributes
    ----------
    number
        Their numbers in the corpus that is analysed.
    first_row, end_row
        The corpus rows they span, end excluded.
    """

    number: NDArray[np.int64]
    first_row: NDArray[np.int64]
    end_row: NDArray[np.int64]

    @classmethod
    def on(cls, snapshots: tuple[Snapshot, ...], axis: RowAxis) -> Documents:
        """Find them; 24 bytes a document."""
        columns: list[list[NDArray[np.int64]]] = [[], [], []]
        for snapshot in snapshots:
            names = ["document", "first_row", "n_tokens"]
            table = pq.read_table(StorePaths(snapshot.root).documents, columns=names)
            number, first, count = (np.asarray(table.column(n).to_numpy()) for n in names)
            columns[0].append(number + snapshot.document_offset)
            columns[1].append(first + snapshot.row_offset)
            columns[2].append(count)
        number, first, count = (np.concatenate(parts) for parts in columns)
        shown = axis.counts(first, count) > 0
        return cls(number[shown], first[shown], (first + count)[shown])

    def __len__(self) -> int:
        return len(self.number)


@dataclass(frozen=True, eq=False)
class PerDocument:
    """The reduction of some values to one line per document.

    Attributes
    ----------
    values
        Where the values come from.
    columns
        The token table along the values' rows.
    documents
        The documents, one line each.
    """

    values: RowValues
    columns: TokenColumns
    documents: Documents

    @property
    def width(self) -> int:
        """Numbers kept per document: rows per token set, invalid rows, then all reductions."""
        size = len(TOKEN_SETS) * len(self.values.names) * len(REDUCTIONS)
        return len(TOKEN_SETS) + 1 + size * math.prod(self.values.shape)

    @cached_property
    def block(self) -> int:
        """Documents of a block: about 32 blocks, unless they would be tiny or grow too large."""
        wanted = max(-(-len(self.documents) // 32), LEAST_BYTES // (8 * self.width))
        return max(1, min(wanted, BLOCK_BYTES // (8 * self.width)))

    def lazy(self) -> dict[str, tuple[tuple[str, ...], Any]]:
        """Dask arrays by name, with their axes: one task per block of documents makes them all."""
        lengths = [
            min(self.block, len(self.documents) - first)
            for first in range(0, len(self.documents), self.block)
        ] or [0]
        numbers = da.from_array(np.arange(len(self.documents)), chunks=(tuple(lengths),))
        flat = da.map_blocks(
            _reduce_block,
            numbers[:, None],
            chunks=(tuple(lengths), (self.width,)),
            dtype=np.float64,
            meta=np.empty((0, 0)),
            # One node of the graph, instead of a copy in every task.
            work=dask.delayed(self, pure=False, traverse=False),
        )
        return self._unpack(flat)

    def _unpack(self, flat: Any) -> dict[str, tuple[tuple[str, ...], Any]]:
        sets, names = len(TOKEN_SETS), self.values.names
        found: dict[str, tuple[tuple[str, ...], Any]] = {
            "rows": (("document", "token_set"), flat[:, :sets].astype(np.int64)),
            "invalid_rows": (("document",), flat[:, sets].astype(np.int64)),
        }
        shape = (len(self.documents), sets, len(names), len(REDUCTIONS), *self.values.shape)
        packed = flat[:, sets + 1 :].reshape(shape)
        for number, name in enumerate(names):
            for at, reduction in enumerate(REDUCTIONS):
                array = packed[:, :, number, at]
                if reduction == "count":
                    array = array.astype(np.int64)
                found[f"{name}_{reduction}"] = (("document", "token_set", "*"), array)
        return found

    def reduce(self, first: int, last: int) -> Values:
        """Lines of the documents ``first`` to ``last`` (end excluded): (documents, width)."""
        sets, names, shape = len(TOKEN_SETS), self.values.names, self.values.shape
        rows = np.zeros((last - first, sets + 1))
        kept = np.zeros((last - first, sets, len(names), len(REDUCTIONS), *shape))
        kept[:, :, :, REDUCTIONS.index("max")] = -np.inf
        begin, end = self.documents.first_row[first], self.documents.end_row[last - 1]
        for piece in self.values.axis.between(int(begin), int(end)):
            for at in range(0, len(piece), self.values.slice_rows):
                self._merge(piece.cut(at, at + self.values.slice_rows), first, rows, kept)
        return np.concatenate([rows, kept.reshape(last - first, -1)], axis=1)

    def _merge(self, piece: Piece, first: int, rows: Values, kept: Values) -> None:
        tokens = self.columns.read([piece], ["document", "position", "special", "valid"])
        document, starts = np.unique(tokens["document"], return_index=True)
        lines = np.searchsorted(self.documents.number, document) - first
        valid = tokens["valid"]
        content = valid & (tokens["position"] > 0) & ~tokens["special"]
        values = self.values.read(piece)
        rows[lines, -1] += np.add.reduceat((~valid).astype(np.float64), starts)
        for number, chosen in enumerate((valid, content)):
            rows[lines, number] += np.add.reduceat(chosen.astype(np.float64), starts)
            usable = np.isfinite(values) & chosen
            line = kept[lines, number]
            line[:, :, 0] += _by_document(np.add, np.where(usable, values, 0), starts)
            line[:, :, 1] += _by_document(np.add, usable, starts)
            largest = _by_document(np.maximum, np.where(usable, values, -np.inf), starts)
            np.maximum(line[:, :, 2], largest, out=line[:, :, 2])
            kept[lines, number] = line


def _by_document(ufunc: np.ufunc, values: NDArray[Any], starts: NDArray[np.intp]) -> Values:
    """Reduce (..., rows) between the starts of documents to (documents, ...), in float64."""
    reduced = ufunc.reduceat(values, starts, axis=-1, dtype=np.float64)
    return np.moveaxis(reduced, -1, 0)


def _reduce_block(numbers: NDArray[np.int64], *, work: PerDocument) -> Values:
    if not numbers.size:
        return np.empty((0, work.width))
    return work.reduce(int(numbers[0, 0]), int(numbers[-1, 0]) + 1)


def slice_rows(names: int, shape: tuple[int, ...]) -> int:
    """Rows of a slice so that its values in float64 stay within ``SLICE_BYTES``."""
    return max(1, SLICE_BYTES // (8 * names * math.prod(shape)))
