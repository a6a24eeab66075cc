"""Means over documents with bootstrap intervals, for matrices that differ in what they measured.

Documents are read a stored block at a time, and resampled for so many cells at a time as fit into
memory, all cells with the same draws. Cost: resamples × documents × cells multiplications.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .bootstrap import ratio_interval
from .summary import Settings

Floats = NDArray[np.float64]

#: Bytes of the sums of all resamples that are held at a time.
SUMS_BYTES = 32 << 20

#: Axes whose every combination is reduced on its own.
OUTER = ("scope", "kind", "part")


def means_over_documents(values: xr.DataArray, settings: Settings) -> xr.Dataset:
    """Mean of the documents that have a value, its interval and their number, by cell.

    Parameters
    ----------
    values
        (scope, kind, part, document, …); NaN where a document has no value.

    Returns
    -------
    xarray.Dataset
        mean, low, high float64 and count int64, (scope, kind, part, …); NaN where the count is
        0, and without an interval where fewer than two documents have any value.
    """
    dims = [dim for dim in values.dims if dim != "document"]
    shape = tuple(values.sizes[dim] for dim in dims)
    found = {key: np.full(shape, np.nan) for key in ("mean", "low", "high")}
    count = np.zeros(shape, np.int64)
    inner = shape[len(OUTER) :]
    for place in np.ndindex(shape[: len(OUTER)]):
        one = _Documents(values.isel(dict(zip(OUTER, place, strict=True))))
        counts = one.counts
        cells = np.flatnonzero(counts)
        flat = {key: np.full(counts.shape, np.nan) for key in found}
        flat["mean"][cells] = one.sums[cells] / counts[cells]
        flat["low"][cells], flat["high"][cells] = _intervals(one, cells, settings)
        for key, array in found.items():
            array[place] = flat[key].reshape(inner)
        count[place] = counts.reshape(inner)
    return xr.Dataset({**{key: (dims, array) for key, array in found.items()},
                       "count": (dims, count)})  # fmt: skip


def _intervals(
    documents: _Documents, cells: NDArray[np.intp], settings: Settings
) -> tuple[Floats, Floats]:
    low, high = np.full((2, len(cells)), np.nan)
    step = max(1, SUMS_BYTES // (8 * settings.resamples))
    for first in range(0, len(cells), step):
        some = slice(first, first + step)
        low[some], high[some] = ratio_interval(
            documents.blocks(cells[some]),
            documents.used,
            len(cells[some]),
            resamples=settings.resamples,
            seed=settings.seed,
            level=settings.level,
        )
    return low, high


class _Documents:
    """Values of one scope, kind and part: (document, cells), read a stored block at a time."""

    def __init__(self, values: xr.DataArray) -> None:
        self._values = values.transpose("document", ...)
        cells = int(np.prod(self._values.shape[1:]))
        self.used = 0
        self.sums, self.counts = np.zeros(cells), np.zeros(cells, np.int64)
        for block in self._read():
            finite = np.isfinite(block)
            self.used += int(finite.any(axis=1).sum())
            self.sums += np.where(finite, block, 0).sum(axis=0)
            self.counts += finite.sum(axis=0)

    def blocks(self, cells: NDArray[np.intp]) -> Iterator[tuple[Floats, Floats]]:
        """Sums and counts of some cells, of the documents that have any value at all."""
        for block in self._read():
            chosen = block[np.isfinite(block).any(axis=1)][:, cells]
            finite = np.isfinite(chosen)
            yield np.where(finite, chosen, 0), finite.astype(np.float64)

    def _read(self) -> Iterator[Floats]:
        first = 0
        for length in self._values.chunks[0] if self._values.chunks else self._values.shape[:1]:
            block = self._values[first : first + length].values
            yield block.reshape(length, -1).astype(np.float64)
            first += length
