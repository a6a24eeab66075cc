"""Where in the source a target is best read from, on a common scale of relative depth.

Point l of L layers lies at depth l / L. For each target the best source is the one with the least
mean relative error; ``slope`` is that of the least-squares line through the best depths (1 where
two models do the same things at the same relative depth), ``distance`` their mean absolute distance
from the diagonal. Intervals come from the same resamples of documents as those of the errors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def diagonal(
    errors: Float64,
    resampled: Float64,
    source_depth: Float64,
    target_depth: Float64,
    points: Sequence[int],
    level: float,
) -> xr.Dataset:
    """Best sources, slope and distance.

    Parameters
    ----------
    errors
        (sources, targets) mean relative errors.
    resampled
        (resamples, sources, targets); none for a single document.
    source_depth, target_depth
        Relative depths of the points.
    points
        Numbers of the source's points.
    level
        Coverage of the intervals.

    Returns
    -------
    xarray.Dataset
        best_source_point, best_source_depth, _low, _high (target_point); diagonal_slope,
        diagonal_distance with _low and _high, no axes.
    """
    best = _best(errors[None])[0]
    depth = source_depth[best]
    drawn = source_depth[_best(resampled)]
    low, high = _interval(drawn, level)
    slopes, distances = _line(drawn, target_depth)
    slope, distance = (float(x[0]) for x in _line(depth[None], target_depth))
    ends = {
        "diagonal_slope": (slope, _interval(slopes, level), "slope of best source depth"),
        "diagonal_distance": (
            distance,
            _interval(distances, level),
            "mean distance of the best source depth from the diagonal",
        ),
    }
    axis, unit = "target_point", {"units": "1"}
    result = xr.Dataset(
        {
            "best_source_point": (
                axis,
                np.array(points, dtype=np.int64)[best],
                {"long_name": "source point with the least error", "units": "point"},
            ),
            "best_source_depth": (axis, depth, {"long_name": "its relative depth", **unit}),
            "best_source_depth_low": (axis, low, {"long_name": "low end of interval", **unit}),
            "best_source_depth_high": (axis, high, {"long_name": "high end of interval", **unit}),
        }
    )
    for name, (value, (bottom, top), meaning) in ends.items():
        result[name] = ((), value, {"long_name": meaning, **unit})
        result[f"{name}_low"] = ((), float(bottom), {"long_name": f"{meaning}: low end", **unit})
        result[f"{name}_high"] = ((), float(top), {"long_name": f"{meaning}: high end", **unit})
    return result


def _best(errors: Float64) -> NDArray[np.intp]:
    """The source of least error for every target: (…, targets)."""
    return np.asarray(np.where(np.isnan(errors), np.inf, errors).argmin(axis=1))


def _line(depths: Float64, targets: Float64) -> tuple[Float64, Float64]:
    """Slope through (…, targets) depths, NaN for a single target, and distance."""
    centred = targets - targets.mean()
    spread = float(centred @ centred)
    slope = depths @ centred / spread if spread > 0 else np.full(len(depths), np.nan)
    return slope, np.abs(depths - targets).mean(axis=1)


def _interval(values: Float64, level: float) -> tuple[Float64, Float64]:
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    tail = 50 * (1 - level)
    low, high = np.percentile(values, [tail, 100 - tail], axis=0)
    return np.asarray(low), np.asarray(high)
