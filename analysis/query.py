"""Questions in SQL over tokens and documents, answered with activations if wanted, into a file.

The SQL's answer goes to a temporary Parquet file first, so that its length is known and nothing has
to fit into memory; then it is read again in batches, whose vectors are gathered from the store and
written on. An answer that must be held in memory is refused, with its size, when it would not fit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from depthscope.storage.errors import RequestError
from depthscope.storage.shard_reader import widen

from .answers import (
    KINDS,
    Answer,
    CsvAnswer,
    Shape,
    publish_answer,
    remove_answer,
    temporary_name,
    with_vectors,
)
from .client import Progress
from .store import Run, StorePath, open
from .stored_arrays import StoredArray
from .tables import sql_error
from .token_columns import column_types
from .vectors import Batches, batches_with_vectors, chosen_points


@dataclass(frozen=True)
class QueryResult:
    """An answer.

    Attributes
    ----------
    rows
        Number of rows.
    columns
        Names of the SQL's columns.
    points
        Points of which vectors were added.
    out
        The file, where one was asked for.
    table
        The rows, where none was; vectors as one column of arrays for each point.
    """

    rows: int
    columns: tuple[str, ...]
    points: tuple[int, ...]
    out: Path | None = None
    table: pd.DataFrame | None = None


def query(
    store: StorePath | Sequence[StorePath] | Run,
    sql: str,
    points: Sequence[int] | str | None = None,
    out: str | Path | None = None,
) -> pd.DataFrame | None:
    """The rows of an answer, or None where they were written to ``out``; see ``run_query``."""
    return run_query(store, sql, points, out).table


def run_query(
    store: StorePath | Sequence[StorePath] | Run,
    sql: str,
    points: Sequence[int] | str | None = None,
    out: str | Path | None = None,
    *,
    partial: bool = False,
    progress: Progress | None = None,
) -> QueryResult:
    """Answer one SELECT statement; its tables are those of ``Run.sql``.

    Parameters
    ----------
    store
        A store, several of one model, or an opened run.
    sql
        The statement; rows come in its order, which only ORDER BY decides.
    points
        Points whose residuals are added to every row, ``all``, or text such as ``0,8,16``; the
        answer then needs a ``row`` column.
    out
        ``.parquet`` (``residual_<point>`` columns of fixed-size lists), ``.csv`` (no points),
        ``.npz`` (keys residual (point, row, hidden), row, point, and the SQL's other columns), or
        ``.zarr``. None returns the rows. bfloat16 becomes float32 everywhere.
    partial
        See ``open``; vectors are NaN where their point is not committed.
    progress
        Called with the rows done and the rows there are.

    Raises
    ------
    RequestError
        The SQL is wrong, has no ``row`` where it is needed, names rows or points that are not
        stored; ``out`` is of no known kind, or its answer would not fit into memory.
    """
    run = store if isinstance(store, Run) else open(store, partial)
    path = None if out is None else Path(out)
    kind = _kind(path)
    wanted = chosen_points(run, points)
    if wanted and kind is CsvAnswer:
        raise RequestError("a .csv holds no vectors: give --out a .parquet, .npz or .zarr")
    residual = run.stored("residual") if wanted else None
    with tempfile.TemporaryDirectory(prefix="depthscope-") as scratch:
        file = Path(scratch) / "answer.parquet"
        _ask(run, sql, file)
        with pq.ParquetFile(file) as answer:
            shape = _shape(answer, file, wanted, residual)
            batches = batches_with_vectors(answer, shape, run, residual, progress)
            if path is None or kind is None:
                _require_memory(shape, answer, "", copies=1)
                table = pa.concat_tables(
                    [with_vectors(batch, vectors, shape) for batch, vectors in batches]
                )
                return QueryResult(
                    shape.rows, tuple(shape.schema.names), wanted, table=table.to_pandas()
                )
            if path.suffix == ".npz":
                _require_memory(shape, answer, path.name, copies=1)
            _write(batches, kind, path, shape)
    return QueryResult(shape.rows, tuple(shape.schema.names), wanted, out=path)


def _kind(path: Path | None) -> Any:
    if path is None:
        return None
    if path.suffix not in KINDS:
        raise RequestError(f"{path}: the ending must be one of {', '.join(KINDS)}")
    if not path.resolve().parent.is_dir():
        raise RequestError(f"{path}: there is no folder {path.parent}")
    return KINDS[path.suffix]


def _ask(run: Run, sql: str, file: Path) -> None:
    relation = run.sql(sql)
    if len(set(relation.columns)) < len(relation.columns):
        raise RequestError(
            f"two columns of the answer have one name: {', '.join(relation.columns)}"
        )
    try:
        relation.write_parquet(str(file), compression="zstd")
    except duckdb.Error as error:
        raise sql_error(sql, error) from error


def _shape(
    answer: pq.ParquetFile, file: Path, points: tuple[int, ...], residual: StoredArray | None
) -> Shape:
    schema = answer.schema_arrow
    shape = Shape(schema, column_types(file), answer.metadata.num_rows)
    if residual is None:
        return shape
    if "row" not in schema.names or not pa.types.is_integer(schema.field("row").type):
        raise RequestError(
            "--points needs a column called row in the SQL's answer: SELECT row, … FROM tokens"
        )
    taken = {"residual", "point", "hidden", *(f"residual_{p}" for p in points)} & set(schema.names)
    if taken:
        raise RequestError(f"the SQL's column {min(taken)} is in the way of the vectors: rename it")
    # The type in which vectors leave: bfloat16 and float16 are widened.
    dtype = widen(np.empty(0, residual.dtype)).dtype
    return Shape(schema, shape.types, shape.rows, points, residual.shape[-1], dtype)


def _require_memory(shape: Shape, answer: pq.ParquetFile, name: str, copies: int) -> None:
    metadata = answer.metadata
    groups = range(metadata.num_row_groups)
    plain = sum(metadata.row_group(group).total_byte_size for group in groups)
    needed = copies * (shape.rows * shape.vector_bytes + plain)
    available = psutil.virtual_memory().available
    if needed > available:
        what = f"{name} is made in memory and" if name else "without --out the answer"
        raise RequestError(
            f"{what} needs {needed / 1e9:.1f} GB, available are {available / 1e9:.1f} GB: "
            "give --out a .parquet or .zarr"
        )


def _write(batches: Batches, kind: Any, path: Path, shape: Shape) -> None:
    temporary = temporary_name(path)
    try:
        answer: Answer = kind(temporary, shape)
        for batch, vectors in batches:
            answer.write(batch, vectors)
        answer.close()
        publish_answer(temporary, path)
    finally:
        remove_answer(temporary)
