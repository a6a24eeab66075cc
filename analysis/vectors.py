"""The rows of an answer in batches, each with the vectors of its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from depthscope.storage.errors import RequestError
from depthscope.storage.shard_reader import widen
from numpy.typing import NDArray

from .answers import Shape
from .catalogue import axis_labels
from .client import Progress
from .store import Run
from .stored_arrays import StoredArray

Batches = Iterator[tuple[pa.Table, NDArray[Any] | None]]


def stored_places(run: Run, array: str = "residual") -> tuple[int, ...]:
    """Numbers of the points, or layers, that an array has, ascending.

    Raises
    ------
    RequestError
        A store does not have the array.
    """
    if array == "residual":
        return run.points
    run.stored(array)
    return tuple(int(number) for number in axis_labels(run.snapshots[0], array, "layer"))


def chosen_points(
    run: Run, points: Sequence[int] | str | None, array: str = "residual"
) -> tuple[int, ...]:
    """The points (layers of another array) that were asked for, none, or all.

    Raises
    ------
    RequestError
        A point is not stored, or the array is not.
    """
    if points is None:
        return ()
    stored = stored_places(run, array)
    if isinstance(points, str):
        points = stored if points.strip() == "all" else _numbers(points)
    unknown = [point for point in points if point not in stored]
    if unknown:
        noun = "point" if array == "residual" else "layer"
        known = ", ".join(map(str, stored)) or "none"
        raise RequestError(f"{noun} {unknown[0]} is not stored; stored {noun}s: {known}")
    if not points and run.stored(array):
        raise RequestError("no points were named; give numbers, or all")
    return tuple(points)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise RequestError(f"unknown points {text!r}; write all, or numbers as 0,8,16") from None


def batches_with_vectors(
    answer: pq.ParquetFile,
    shape: Shape,
    run: Run,
    residual: StoredArray | None,
    progress: Progress | None,
) -> Batches:
    """The answer's rows in order, ``shape.batch_rows`` at a time, each batch with its vectors.

    Raises
    ------
    RequestError
        A row is null, or has no stored activations.
    """
    places = [run.points.index(point) for point in shape.points]
    done = 0
    for batch in _tables(answer, shape.batch_rows):
        vectors = None
        if residual is not None:
            rows = _rows(batch)
            at = residual.axis.places(rows)
            _require_stored(rows, at)
            vectors = widen(residual[places, at, slice(None)])
        yield batch, vectors
        done += batch.num_rows
        if progress is not None:
            progress(done, shape.rows)


def _tables(answer: pq.ParquetFile, size: int) -> Iterator[pa.Table]:
    """The rows in tables of exactly ``size`` rows, and a last one."""
    waiting = answer.schema_arrow.empty_table()
    for batch in answer.iter_batches(batch_size=min(size, 1 << 16)):
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch])])
        while waiting.num_rows >= size:
            yield waiting.slice(0, size)
            waiting = waiting.slice(size)
    yield waiting


def _rows(batch: pa.Table) -> NDArray[np.int64]:
    column = batch.column("row")
    if column.null_count:
        raise RequestError(
            "the SQL's column row has nulls: leave them out with WHERE row IS NOT NULL"
        )
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _require_stored(rows: NDArray[np.int64], places: NDArray[np.int64]) -> None:
    missing = rows[places < 0]
    if len(missing):
        raise RequestError(
            f"row {missing[0]} of the answer has no stored activations: "
            "add WHERE row IN (SELECT row FROM activation_rows)"
        )
