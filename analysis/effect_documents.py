"""Effects of every document: the mean, or the largest, of its splits.

One Dask task reduces one stored block, so documents are streamed and the cost is linear in them.
Values that are not finite are left out; where nothing is left the result is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from depthscope.storage.effects_arrays import EFFECTS, OUTPUTS
from numpy.typing import NDArray

from .effects import Effects

Block = NDArray[Any]


def document_effects(effects: Effects, at: Mapping[str, str] | None = None) -> xr.Dataset:
    """Effects and output effects by document, lazy.

    Parameters
    ----------
    effects
        From ``open_effects``.
    at
        Labels of scope, kind or part to be taken alone; all by default.

    Returns
    -------
    xarray.Dataset
        effect_mean (scope, kind, part, document, source, target) float64, the mean of the splits'
        means over positions; effect_max float32, the largest; output_l2_mean, output_kl_mean and
        output_l2_max likewise, without target.
    """
    found = {}
    for name in (*EFFECTS, *OUTPUTS):
        reduce, dtype = (largest, "f4") if name.endswith("_max") else (mean, "f8")
        found[name] = _over(effects.array(name).sel(at or {}), "split", reduce, dtype)
    return xr.Dataset(found)


@dataclass(frozen=True, eq=False)
class EffectCounts:
    """What a sweep has measured of its documents.

    Attributes
    ----------
    splits
        (scope, document) int64: splits with any finite effect; scope ``all`` counts as one.
    nonfinite
        Effects on later layers that were measured but are not finite, of all those documents.
    """

    splits: xr.DataArray
    nonfinite: int

    @classmethod
    def of(cls, effects: Effects) -> EffectCounts:
        """Read every effect once; memory is six axes of counts."""
        values = effects.array("effect_mean")
        later = values.where(values["target"] > values["source"])
        found = xr.Dataset(
            {"any": _over(values, "target", _finite), "later": _over(later, "target", _finite)}
        ).compute()
        live = found["any"].sum(("kind", "part", "source")) > 0
        wanted = (effects.record.layers - 1 - found["source"]) * _measured(effects)
        missing = ((wanted - found["later"]) * live).sum()
        return cls(live.sum("split").transpose("scope", "document"), int(missing))


def _measured(effects: Effects) -> xr.DataArray:
    """(document, source): which layers of which documents are committed and were asked for."""
    record = effects.record
    done = np.zeros((len(record.documents), record.layers), np.bool_)
    for task in effects.tasks:
        done[slice(*task.rows), slice(*task.sources)] = True
    done &= np.isin(np.arange(record.layers), record.sources)
    return xr.DataArray(done[effects.places], dims=("document", "source"))


def mean(block: Block, axis: int) -> Block:
    """Mean of the finite values along an axis, float64; NaN where there is none."""
    finite = np.isfinite(block)
    count = finite.sum(axis)
    found: Block = np.where(finite, block, 0).sum(axis, dtype=np.float64)
    found[count == 0] = np.nan
    found /= np.maximum(count, 1)
    return found


def largest(block: Block, axis: int) -> Block:
    """Largest of the finite values along an axis; NaN where there is none."""
    finite = np.isfinite(block)
    found = np.where(finite, block, -np.inf).max(axis)
    return np.where(finite.any(axis), found, np.nan).astype(block.dtype)


def _finite(block: Block, axis: int) -> Block:
    count: Block = np.isfinite(block).sum(axis)
    return count


def _over(
    array: xr.DataArray, dim: str, reduce: Callable[[Block, int], Block], dtype: str = "i8"
) -> xr.DataArray:
    """The array reduced along one axis, which is then one block."""
    axis = array.dims.index(dim)
    values: da.Array = array.data.rechunk({axis: -1})
    reduced = values.map_blocks(reduce, axis, drop_axis=axis, dtype=np.dtype(dtype))
    dims = [key for key in array.dims if key != dim]
    labels = {key: label for key, label in array.coords.items() if dim not in label.dims}
    return xr.DataArray(reduced, labels, dims, array.name)
