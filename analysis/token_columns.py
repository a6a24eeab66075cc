"""Columns of the token and document tables along a row axis, read a block at a time.

Row r of a store is row r of its tokens.parquet, document d row d of its documents.parquet, so a
block reads only the row groups it needs. ``valid`` is false for every document that failed, also
while the run that noticed it is still writing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import dask.array as da
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from depthscope.storage.layout import StorePaths
from numpy.typing import NDArray

from .rows import Numbers, Piece, RowAxis
from .snapshot import Snapshot

#: Columns of tokens.parquet that become coordinates; the row is the index.
TOKEN_COLUMNS = (
    "document",
    "position",
    "token_id",
    "token",
    "char_start",
    "char_end",
    "special",
    "role",
    "valid",
)

#: Columns of documents.parquet that do not travel along the rows: long, or not about a row.
LEFT_OUT = frozenset({"document", "first_row", "digest", "text"})

#: Rows of a lazy block of coordinates, and the most rows whose coordinates are loaded at once.
BLOCK_ROWS = 1 << 18


@dataclass(frozen=True, eq=False)
class TokenColumns:
    """The two tables of all opened stores, along a row axis."""

    snapshots: tuple[Snapshot, ...]
    axis: RowAxis

    @cached_property
    def document_columns(self) -> dict[str, np.dtype[Any]]:
        """Columns of documents.parquet that every opened store has, with their data types."""
        found = [column_types(StorePaths(s.root).documents) for s in self.snapshots]
        shared = [n for n in found[0] if all(n in types for types in found) and n not in LEFT_OUT]
        return {name: _common([types[name] for types in found]) for name in shared}

    def dtype(self, name: str) -> np.dtype[Any]:
        """Data type of a column in numpy."""
        return _TOKEN_TYPES.get(name) or self.document_columns[name]

    def read(self, pieces: Sequence[Piece], names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Columns for the rows of these pieces, one after the other."""
        parts = [self._read_piece(piece, names) for piece in pieces]
        return {
            name: np.concatenate(
                [np.empty(0, self.dtype(name)), *(part[name] for part in parts)]
            ).astype(self.dtype(name), copy=False)
            for name in names
        }

    def _read_piece(self, piece: Piece, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        snapshot = self.snapshots[piece.store]
        paths, rows = StorePaths(snapshot.root), _local(piece.rows, snapshot.row_offset)
        of_tokens = [name for name in names if name in TOKEN_COLUMNS and name != "document"]
        found = read_columns(paths.tokens, rows, ["document", *of_tokens])
        document = found["document"]
        if "valid" in found and snapshot.invalid:
            found["valid"] = found["valid"] & ~np.isin(document, snapshot.invalid)
        of_documents = [name for name in names if name not in _TOKEN_TYPES]
        if of_documents:
            numbers, place = np.unique(document, return_inverse=True)
            fields = read_columns(paths.documents, numbers, of_documents)
            found.update({name: fields[name][place] for name in of_documents})
        found["document"] = document + snapshot.document_offset
        found["store"] = np.full(len(piece), piece.store, dtype=np.int32)
        return found


@dataclass(frozen=True, eq=False)
class _LazyColumn:
    """One column as something Dask can slice."""

    columns: TokenColumns
    column: str
    dtype: np.dtype[Any]
    ndim: int = 1

    @property
    def shape(self) -> tuple[int]:
        return (len(self.columns.axis),)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        key = key[0] if isinstance(key, tuple) else key
        axis = self.columns.axis
        if isinstance(key, slice) and key.step in (None, 1):
            first, last, _ = key.indices(len(axis))
            return self.columns.read(list(axis.cut(first, last)), [self.column])[self.column]
        places = np.arange(len(axis), dtype=np.int64)[key]
        out = np.empty(places.shape, self.dtype)
        for piece, where in axis.take(np.atleast_1d(places)):
            values = self.columns.read([piece], [self.column])[self.column]
            np.atleast_1d(out)[where] = values
        return out


def row_columns(columns: TokenColumns, names: Sequence[str]) -> dict[str, Any]:
    """Columns as Dask arrays, or as values where the axis is short enough to be read at once."""
    axis = columns.axis
    if len(axis) <= BLOCK_ROWS:
        return dict(columns.read(axis.pieces, names))
    blocks = axis.blocks(BLOCK_ROWS)
    return {
        name: da.from_array(
            _LazyColumn(columns, name, columns.dtype(name)),
            chunks=(blocks,),
            name=f"{name}-{uuid4().hex}",
            asarray=False,
            fancy=True,
            lock=False,
            meta=np.empty(0, columns.dtype(name)),
        )
        for name in names
    }


def read_columns(path: Path, places: Numbers, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Columns at ascending places of a Parquet file, reading only the row groups that hold them.

    Text becomes objects (None where null), numbers with nulls become floats with NaN.
    """
    numbers = np.asarray(places, dtype=np.int64)
    # The footer is read anew each time: marking failed documents replaces tokens.parquet.
    with pq.ParquetFile(path) as file:
        starts = _group_starts(file.metadata)
        groups = np.unique(np.searchsorted(starts, numbers, side="right") - 1)
        tables = []
        for group in groups.tolist():
            first, last = np.searchsorted(numbers, (starts[group], starts[group + 1]))
            table = file.read_row_group(group, columns=list(names))
            tables.append(table.take(pa.array(numbers[first:last] - starts[group])))
        table = pa.concat_tables(tables) if tables else file.schema_arrow.empty_table()
    return {name: np.asarray(table.column(name).to_numpy()) for name in names}


_TOKEN_TYPES: dict[str, np.dtype[Any]] = {
    "row": np.dtype(np.int64),
    "store": np.dtype(np.int32),
    "document": np.dtype(np.int64),
    "position": np.dtype(np.int32),
    "token_id": np.dtype(np.int32),
    "token": np.dtype(object),
    "char_start": np.dtype(np.int32),
    "char_end": np.dtype(np.int32),
    "special": np.dtype(np.bool_),
    "role": np.dtype(object),
    "valid": np.dtype(np.bool_),
}


def column_types(path: Path) -> dict[str, np.dtype[Any]]:
    """The numpy data type of every column of a Parquet file, from its footer."""
    metadata = pq.read_metadata(path)
    types = {}
    for at, field in enumerate(metadata.schema.to_arrow_schema()):
        nulls = any(
            _null_count(metadata.row_group(group).column(at))
            for group in range(metadata.num_row_groups)
        )
        types[field.name] = numpy_type(field.type, nulls)
    return types


def _null_count(column: Any) -> int:
    statistics = column.statistics
    return 1 if statistics is None or statistics.null_count is None else int(statistics.null_count)


def numpy_type(kind: Any, nulls: bool) -> np.dtype[Any]:
    """The numpy data type of an Arrow type: text and whatever numpy cannot hold as objects."""
    if pa.types.is_floating(kind) or (pa.types.is_integer(kind) and nulls):
        return np.dtype(np.float64)
    if (pa.types.is_integer(kind) or pa.types.is_boolean(kind)) and not nulls:
        found: np.dtype[Any] = np.dtype(kind.to_pandas_dtype())
        return found
    return np.dtype(object)


def _common(types: Sequence[np.dtype[Any]]) -> np.dtype[Any]:
    found = set(types)
    if len(found) == 1:
        return types[0]
    if all(dtype.kind in "if" for dtype in found):
        return np.dtype(np.float64)
    return np.dtype(object)


def _local(rows: Numbers, offset: int) -> Numbers:
    if isinstance(rows, range):
        return range(rows.start - offset, rows.stop - offset)
    return rows - offset


def _group_starts(metadata: Any) -> NDArray[np.int64]:
    """First row of every row group, followed by the number of rows."""
    counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
