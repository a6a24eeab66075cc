"""Growing a saved reduction by document: when tasks were added, only what they changed is read.

The sums of a document depend on its own rows alone, so a line that was saved still holds while the
document has as many rows to show as then, and fails or not as then. All other documents, new ones
and those that ran across the border of a task, are reduced anew; the bootstrap is drawn again over
all lines, so a result that has grown equals one that is made at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .per_document import Documents, PerDocument, RowValues
from .results import REVISION, Provenance, open_result
from .rows import RowAxis
from .store import Run
from .stored_arrays import StoredArray

#: Parameters that do not touch the sums.
_BOOTSTRAP = ("resamples", "seed", "level")


@dataclass(frozen=True, eq=False)
class Growth:
    """Lines of an earlier result, for as many documents as they still hold.

    Attributes
    ----------
    lines
        The earlier group ``documents``, unread.
    at
        (documents,): place of each document among the lines, -1 where it is reduced anew.
    """

    lines: xr.Dataset
    at: NDArray[np.int64]

    def rest(self, whole: PerDocument) -> PerDocument:
        """The reduction of the documents that have no line."""
        fresh = np.flatnonzero(self.at < 0)
        all_of = whole.documents
        documents = Documents(all_of.number[fresh], all_of.first_row[fresh], all_of.end_row[fresh])
        # Neighbours are read as one range, as they would be otherwise.
        runs = np.split(fresh, np.flatnonzero(np.diff(fresh) > 1) + 1)
        pieces = [
            piece
            for run in runs
            if len(run)
            for piece in whole.values.axis.between(
                int(all_of.first_row[run[0]]), int(all_of.end_row[run[-1]])
            )
        ]
        return PerDocument(_on(whole.values, RowAxis(tuple(pieces))), whole.columns, documents)

    def joined(self, fresh: xr.Dataset, whole: PerDocument) -> xr.Dataset:
        """All lines, ascending by document, in the blocks of a reduction made at once."""
        kept = np.flatnonzero(self.at >= 0)
        order = np.argsort(np.concatenate([kept, np.flatnonzero(self.at < 0)]))
        variables = {}
        for name, array in fresh.data_vars.items():
            lines = [self.lines[name].data[self.at[kept]], array.data]
            joined = da.concatenate(lines, axis=0)[order]
            variables[name] = (array.dims, joined.rechunk({0: whole.block}))
        coordinates = {name: fresh[name].values for name in fresh.coords if name != "document"}
        return xr.Dataset(variables, {**coordinates, "document": whole.documents.number})


def find_growth(
    place: Path | None, provenance: Provenance, run: Run, documents: Documents, axis: RowAxis
) -> Growth | None:
    """The lines of the result saved at a place that still hold; None where none do.

    Parameters
    ----------
    place, provenance
        Where the result is saved, and what the new one is made from.
    run, documents, axis
        What is visible now.
    """
    if place is None or not same_but_for_tasks(place, provenance, _BOOTSTRAP):
        return None
    lines = xr.open_zarr(place, group="documents", consolidated=False)
    numbers = np.asarray(lines["document"].values, dtype=np.int64)
    rows = lines["rows"].isel(token_set=0).values
    failed = lines["invalid_rows"].values
    at = np.searchsorted(numbers, documents.number)
    at[at == len(numbers)] = 0
    holds = numbers[at] == documents.number if len(numbers) else np.zeros(len(at), np.bool_)
    if not holds.any():
        lines.close()
        return None
    shown = axis.counts(documents.first_row, documents.end_row - documents.first_row)
    invalid = [n + s.document_offset for s in run.snapshots for n in s.invalid]
    holds &= (rows + failed)[at] == shown
    holds &= (failed[at] > 0) == np.isin(documents.number, invalid)
    return Growth(lines, np.where(holds, at, -1))


def same_but_for_tasks(place: Path, provenance: Provenance, ignored: Sequence[str]) -> bool:
    """Whether the result saved at a place can grow: only tasks and ignored parameters differ."""
    if provenance.partial or not place.is_dir():
        return False
    try:
        saved = open_result(place).attrs
    except (OSError, ValueError, KeyError):
        return False

    def decisive(parameters: Any) -> dict[str, Any]:
        return {name: value for name, value in parameters.items() if name not in ignored}

    # A partial result may have rows whose values are still to come.
    return (
        saved.get("analysis") == provenance.name
        and saved.get("revision") == REVISION
        and not saved.get("partial", True)
        and [one["identity"] for one in saved["inputs"]]
        == [one["identity"] for one in provenance.inputs]
        and decisive(saved["parameters"]) == decisive(provenance.parameters)
    )


def _on(values: RowValues, axis: RowAxis) -> RowValues:
    """The same values over other rows; values are dataclasses of arrays over one axis."""

    def moved(value: Any) -> Any:
        if isinstance(value, StoredArray):
            return replace(value, axis=axis)
        if isinstance(value, tuple):
            return tuple(moved(one) for one in value)
        return value

    found: Any = values
    changed = {one.name: moved(getattr(found, one.name)) for one in fields(found)}
    over: RowValues = replace(found, **changed)
    return over
