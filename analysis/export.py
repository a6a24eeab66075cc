"""Rows of stores with their vectors, written for training elsewhere: Parquet, Zarr, safetensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths

from .answers import publish_answer, remove_answer, temporary_name
from .export_files import check_out, row_file
from .export_rows import RowSource, counted, in_order, rebatched, scratch_beside, shuffled
from .rows import RowAxis
from .store import Run, StorePath, open
from .token_columns import read_columns
from .vectors import chosen_points

#: Bytes that a shuffle keeps in memory unless told otherwise.
MEMORY = 2 << 30


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes
    ----------
    out
        The file or folder.
    rows
        Rows in it.
    invalid
        Rows that were left out because their document failed.
    points
        Points (or layers) whose vectors are in it.
    seed
        Of the shuffle; None where the rows are in the store's order.
    """

    out: Path
    rows: int
    invalid: int
    points: tuple[int, ...]
    seed: int | None


def export(
    store: StorePath | Sequence[StorePath] | Run,
    out: str | Path,
    *,
    points: Sequence[int] | str | None = "all",
    array: str = "residual",
    where: str | None = None,
    seed: int | None = None,
    memory: int = MEMORY,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Write the rows that have activations, each with its row, document, position and token id.

    Parameters
    ----------
    store
        A store, several of one model, or an opened run.
    out
        ``.parquet`` (columns ``residual_<point>``), ``.zarr`` (residual (point, row, hidden)), both
        with bfloat16 as float32; or a folder that gets safetensors of about 256 MB and
        ``index.json``, with the bits as stored.
    points
        Points whose vectors travel with a row; layers, of another array than ``residual``.
    array
        ``residual``, ``attention_output`` or ``mlp_output``; names what is written.
    where
        A predicate over tokens and their documents' fields; None for all rows.
    seed
        Shuffles all rows (see ``export_rows``); None keeps their order.
    memory
        Bytes that a shuffle may keep in memory.
    progress
        Called with the rows done and the rows there are.

    Raises
    ------
    RequestError
        A point or the array is not stored, the predicate is wrong, or ``out`` cannot be written.
    """
    path = Path(out)
    check_out(path)
    run = store if isinstance(store, Run) else open(store)
    if where is not None:
        run = run.where(where)
    source = RowSource(run, chosen_points(run, points, array), array)
    invalid = _failed_rows(run, source.axis)
    rows = len(source.axis) - invalid
    if not rows:
        raise RequestError("no row is left to export: choose another --where, or finish the store")
    about = {
        "stores": [snapshot.record.identity for snapshot in run.snapshots],
        "array": array,
        "points": list(source.points),
        "where": where,
        "seed": seed,
    }
    batches = (
        in_order(source)
        if seed is None
        else shuffled(source, seed, memory, scratch_beside(path.absolute()))
    )
    temporary = temporary_name(path.absolute())
    try:
        file = row_file(temporary, path, source, rows, about)
        for batch in counted(rebatched(batches, file.batch_rows), rows, progress):
            file.write(batch)
        file.close()
        publish_answer(temporary, path)
    finally:
        remove_answer(temporary)
    return Exported(path, rows, invalid, source.points, seed)


def _failed_rows(run: Run, axis: RowAxis) -> int:
    """Rows along an axis whose document failed."""
    failed = 0
    for snapshot in run.snapshots:
        if snapshot.invalid:
            columns = ["first_row", "n_tokens"]
            spans = read_columns(
                StorePaths(snapshot.root).documents, np.array(snapshot.invalid), columns
            )
            firsts, lengths = (spans[name].astype(np.int64) for name in columns)
            failed += int(axis.counts(firsts + snapshot.row_offset, lengths).sum())
    return failed
