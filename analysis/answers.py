"""Files that an answer is written to, a batch at a time.

Every file is written under a temporary name and renamed when it is whole. Vectors come as
(point or layer, rows of the batch, hidden); bfloat16 has become float32, which every reader knows.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import zarr
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

_TEXT = np.dtypes.StringDType()

#: At most this many rows in a chunk of a ``.zarr`` answer.
CHUNK_ROWS = 4096

#: Bytes of the vectors of a batch.
BATCH_BYTES = 64 << 20


@dataclass(frozen=True)
class Shape:
    """What an answer will hold, known before its first batch.

    Attributes
    ----------
    schema
        The SQL's columns.
    types
        Their data types in numpy; object for text and whatever numpy cannot hold.
    rows
        Number of its rows.
    points
        Points (layers, of another array) of which vectors are added; empty for none.
    hidden
        Length of a vector.
    dtype
        Data type of the vectors.
    array
        Which of the store's arrays the vectors are of; they go by its name.
    """

    schema: pa.Schema
    types: Mapping[str, np.dtype[Any]]
    rows: int
    points: tuple[int, ...] = ()
    hidden: int = 0
    dtype: np.dtype[Any] | None = None
    array: str = "residual"

    @property
    def axis(self) -> str:
        """What the vectors of a row are numbered by."""
        return "point" if self.array == "residual" else "layer"

    @property
    def vector_bytes(self) -> int:
        """Bytes of the vectors of one row."""
        return 0 if self.dtype is None else len(self.points) * self.hidden * self.dtype.itemsize

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk of a ``.zarr`` answer."""
        return max(1, min(CHUNK_ROWS, BATCH_BYTES // max(1, self.vector_bytes)))

    @property
    def batch_rows(self) -> int:
        """Rows of a batch: whole chunks, with vectors of about ``BATCH_BYTES``."""
        chunk_bytes = max(1, self.chunk_rows * self.vector_bytes)
        return self.chunk_rows * max(1, min(16, BATCH_BYTES // chunk_bytes))


class Answer(Protocol):
    """Where batches go."""

    def write(self, batch: pa.Table, vectors: NDArray[Any] | None) -> None:
        """Take one batch of rows with their vectors."""

    def close(self) -> None:
        """Complete the file under its temporary name."""


def with_vectors(batch: pa.Table, vectors: NDArray[Any] | None, shape: Shape) -> pa.Table:
    """The batch with one fixed-size-list column, as ``residual_<point>``, for each point."""
    if vectors is None:
        return batch
    for number, point in enumerate(shape.points):
        flat = pa.array(np.ascontiguousarray(vectors[number]).reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, shape.hidden)
        batch = batch.append_column(f"{shape.array}_{point}", column)
    return batch


class ParquetAnswer:
    """``.parquet``: the SQL's columns, and a fixed-size-list column for each point."""

    def __init__(self, path: Path, shape: Shape) -> None:
        kind = pa.list_(pa.from_numpy_dtype(shape.dtype), shape.hidden)
        vectors = [(f"{shape.array}_{point}", kind) for point in shape.points]
        schema = pa.schema([*shape.schema, *(pa.field(*vector) for vector in vectors)])
        self._shape = shape
        self._out = pq.ParquetWriter(path, schema, compression="zstd")

    def write(self, batch: pa.Table, vectors: NDArray[Any] | None) -> None:
        """Append a row group."""
        self._out.write_table(with_vectors(batch, vectors, self._shape).cast(self._out.schema))

    def close(self) -> None:
        """Write the footer."""
        self._out.close()


class CsvAnswer:
    """``.csv``: the SQL's columns; a text file is no place for vectors."""

    def __init__(self, path: Path, shape: Shape) -> None:
        if shape.points:
            raise RequestError("a .csv holds no vectors: give --out a .parquet, .npz or .zarr")
        self._out = pc.CSVWriter(path, shape.schema)

    def write(self, batch: pa.Table, vectors: NDArray[Any] | None) -> None:
        """Append lines."""
        self._out.write_table(batch)

    def close(self) -> None:
        """Flush."""
        self._out.close()


class NpzAnswer:
    """``.npz``: ``residual`` (point, row, hidden), ``point``, and the SQL's columns by name."""

    def __init__(self, path: Path, shape: Shape) -> None:
        self._path, self._shape = path, shape
        self._batches: list[pa.Table] = []
        self._done = 0
        size = (len(shape.points), shape.rows, shape.hidden)
        self._vectors = np.empty(size, shape.dtype) if shape.points else None

    def write(self, batch: pa.Table, vectors: NDArray[Any] | None) -> None:
        """Keep the batch in memory."""
        self._batches.append(batch)
        if self._vectors is not None and vectors is not None:
            self._vectors[:, self._done : self._done + batch.num_rows] = vectors
        self._done += batch.num_rows

    def close(self) -> None:
        """Write everything."""
        table = pa.concat_tables([self._shape.schema.empty_table(), *self._batches])
        arrays = {
            name: _plain(table.column(name), dtype, np.dtype(np.str_))
            for name, dtype in self._shape.types.items()
        }
        if self._vectors is not None:
            arrays[self._shape.array] = self._vectors
            arrays[self._shape.axis] = np.array(self._shape.points, dtype=np.int64)
        with self._path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]


class ZarrAnswer:
    """``.zarr``: a dataset of the SQL's columns along ``row``, and ``residual`` for the points."""

    def __init__(self, path: Path, shape: Shape) -> None:
        self._shape, self._done = shape, 0
        self._group = zarr.create_group(path, zarr_format=3)
        # Without a column of that name, rows are merely counted.
        self._arrays = {
            name: self._create(name, (shape.rows,), ("row",), _TEXT if dtype.kind == "O" else dtype)
            for name, dtype in shape.types.items()
        }
        if shape.dtype is not None:
            size = (len(shape.points), shape.rows, shape.hidden)
            axes = (shape.axis, "row", "hidden")
            self._arrays[shape.array] = self._create(shape.array, size, axes, shape.dtype)
            points = np.array(shape.points, dtype=np.int64)
            self._create(shape.axis, points.shape, (shape.axis,), points.dtype)[...] = points

    def _create(
        self, name: str, size: tuple[int, ...], axes: tuple[str, ...], dtype: np.dtype[Any]
    ) -> zarr.Array[Any]:
        cut = {self._shape.axis: 1 if "row" in axes else size[0], "row": self._shape.chunk_rows}
        chunks = tuple(
            max(1, min(cut.get(axis, length), length))
            for axis, length in zip(axes, size, strict=True)
        )
        return self._group.create_array(
            name, shape=size, chunks=chunks, dtype=dtype, dimension_names=axes
        )

    def write(self, batch: pa.Table, vectors: NDArray[Any] | None) -> None:
        """Write whole chunks."""
        rows = slice(self._done, self._done + batch.num_rows)
        for name, dtype in self._shape.types.items():
            self._arrays[name][rows] = _plain(batch.column(name), dtype, _TEXT)
        if vectors is not None:
            self._arrays[self._shape.array][:, rows] = vectors
        self._done += batch.num_rows

    def close(self) -> None:
        """Nothing is left to be done."""


#: Kinds of files by their ending.
KINDS = {
    ".parquet": ParquetAnswer,
    ".csv": CsvAnswer,
    ".npz": NpzAnswer,
    ".zarr": ZarrAnswer,
}


def _plain(column: Any, dtype: np.dtype[Any], text: np.dtype[Any]) -> NDArray[Any]:
    """A column in numpy without Python objects; what is null or not a number becomes text."""
    if dtype.kind != "O":
        return np.asarray(column.to_numpy()).astype(dtype)
    values = ["" if value is None else str(value) for value in column.to_pylist()]
    return np.array(values, dtype=text)


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` for the unfinished file."""
    return path.with_name(f".{path.name}.{token_hex(6)}")


def publish_answer(temporary: Path, path: Path) -> None:
    """Give a finished file or folder its name, replacing an answer that is there."""
    if path.is_dir():
        shutil.rmtree(path)
    temporary.replace(path)


def remove_answer(temporary: Path) -> None:
    """Remove an unfinished file or folder."""
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)
