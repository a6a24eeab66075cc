"""From the sums of a run's geometry to its dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .cka import ratio
from .geometry_state import Moments, Overview
from .massive import KEPT, Massive
from .per_document import TOKEN_SETS
from .poisson_bootstrap import PoissonBootstrap, interval
from .spectra import effective_rank, eigenvalues, linearity, participation_ratio

Float64 = NDArray[np.float64]

#: What the moments of a point give, with its meaning.
OF_POINT = {
    "variance": "variance of the vectors' dimensions around their mean, averaged",
    "effective_rank": "exp of the entropy of the singular values' shares, centred vectors",
    "participation_ratio": "(Σλ)² / Σλ² of the covariance's eigenvalues",
}


def spectral(moments: Moments) -> dict[str, Float64]:
    """What the moments of a tile give: (token_set, points of the tile)."""
    names = (*OF_POINT, "linearity")
    found = {name: np.full((len(TOKEN_SETS), len(moments.points)), np.nan) for name in names}
    for place, token_set in enumerate(TOKEN_SETS):
        # Content rows come first; "all" adds the others.
        used = [0] if token_set == "content" else [0, 1]
        rows = moments.rows[used].sum()
        if rows < 2:
            continue
        shift = moments.sum[used].sum(axis=0) / rows
        square = moments.square[used].sum(axis=0) - rows * np.square(shift).sum(axis=1)
        for at, point in enumerate(moments.points):
            gram = moments.gram[point][used].sum(axis=0)
            gram -= rows * np.outer(shift[point], shift[point])
            values, vectors = eigenvalues(gram)
            found["variance"][place, at] = np.trace(gram) / rows / len(gram)
            found["effective_rank"][place, at] = effective_rank(values)
            found["participation_ratio"][place, at] = participation_ratio(values)
            if point in moments.cross and rows > len(gram):
                cross = moments.cross[point][used].sum(axis=0)
                cross -= rows * np.outer(shift[point], shift[point + 1])
                explained = linearity(values, vectors, cross, float(square[point + 1]))
                found["linearity"][place, at] = explained
    return found


def geometry_dataset(
    state: Overview,
    of_points: Mapping[str, Float64],
    points: Sequence[int],
    layers: int,
    magnitude: Float64,
    level: float,
) -> xr.Dataset:
    """The result.

    Parameters
    ----------
    state
        Sums over all rows.
    of_points
        From the moments: (token_set, point).
    points, layers
        The stored points, and the layers of the model.
    magnitude
        Median magnitude of the values at every point.
    level
        Coverage of the intervals.
    """
    numbers = np.array(points, dtype=np.int64)
    result = xr.Dataset(
        coords={
            "token_set": np.array(TOKEN_SETS),
            "point": numbers,
            "point_other": numbers,
            "layer": np.arange(layers),
            "span": np.arange(1, max(int(np.ptp(numbers)) + 1, 2)),
            "rank": np.arange(KEPT),
            "dimension": np.arange(state.direction.shape[-1]),
        }
    )
    _add_cka(result, state, level)
    _add_cosines(result, state, numbers, level)
    _add_values(result, state, of_points, layers, level)
    _add_massive(result, state, magnitude)
    counts = [_of(token_set, state.rows) for token_set in TOKEN_SETS]
    _put(result, "count", ("token_set",), np.array(counts), "rows in the token set", "row")
    return result


def _add_cka(result: xr.Dataset, state: Overview, level: float) -> None:
    axes = ("token_set", "point", "point_other")
    size = len(result.point)
    # Blocks of CKA are drawn from content rows, and again from all rows.
    order = [0 if token_set == "content" else 1 for token_set in TOKEN_SETS]
    values = np.stack([state.cka[number].values() for number in order])
    _put(result, "cka", axes, values, "linear CKA of two points, unbiased")
    ends = []
    for number in order:
        drawn = state.cka_draws[number].sums.reshape(-1, size, size)
        ends.append(interval(ratio(drawn), level))
    for end, bound in zip(("low", "high"), zip(*ends, strict=True), strict=True):
        text = f"linear CKA: {end} end of the bootstrap interval over blocks of rows"
        _put(result, f"cka_{end}", axes, np.stack(bound), text)


def _add_cosines(result: xr.Dataset, state: Overview, points: Any, level: float) -> None:
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.stack([_of(s, state.cosine) / _of(s, state.compared) for s in TOKEN_SETS])
        last = state.angle_last / state.compared_last
    axes = ("token_set", "point", "point_other")
    _put(result, "cosine", axes, mean, "mean cosine of a row's vectors at two points")
    nothing = np.full((len(TOKEN_SETS), len(points), len(result.span)), np.nan)
    spans = {f"angular_distance{end}": nothing.copy() for end in ("", "_low", "_high")}
    upper = state.upper
    span = points[upper[1]] - points[upper[0]] - 1
    for place, token_set in enumerate(TOKEN_SETS):
        counts = _of(token_set, state.compared)[upper]
        with np.errstate(invalid="ignore", divide="ignore"):
            value = _of(token_set, state.angle_sum) / counts
        low, high = interval(_ratios(state.angle, token_set), level)
        for name, found in zip(spans, (value, low, high), strict=True):
            spans[name][place, upper[0], span] = found
    meaning = "mean angle between a row's vectors at a point and span points later, over π"
    for name, values in spans.items():
        end = name.rsplit("_", 1)[-1]
        text = meaning if end == "distance" else f"{meaning}: {end} end of the bootstrap interval"
        _put(result, name, ("token_set", "point", "span"), values, text)
    only = np.full((len(points), len(result.span)), np.nan)
    only[upper[0], span] = last
    _put(result, "angular_distance_last", ("point", "span"), only,
         "the same over the last rows of documents")  # fmt: skip


def _add_values(
    result: xr.Dataset,
    state: Overview,
    of_points: Mapping[str, Float64],
    layers: int,
    level: float,
) -> None:
    axes, points = ("token_set", "point"), result.point.values
    for name, meaning in OF_POINT.items():
        _put(result, name, axes, of_points[name], meaning)
    hidden = state.direction.shape[-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        rows = np.array([_of(s, state.rows) for s in TOKEN_SETS], dtype=np.float64)[:, None]
        sparsity = np.stack([_of(s, state.near_zero) for s in TOKEN_SETS]) / rows / hidden
        score = of_points["variance"] / np.where(sparsity > 0, sparsity, np.nan)
        total = np.nansum(score, axis=1, keepdims=True)
        score = score / np.where(total > 0, total, np.nan)
        count = np.stack([_of(s, state.directed) for s in TOKEN_SETS])
        joined = np.stack([_of(s, state.direction) for s in TOKEN_SETS])
        together = (np.square(joined).sum(axis=-1) - count) / (count * (count - 1))
    _put(result, "sparsity", axes, sparsity,
         "share of values below 0.01 of their row's root mean square")  # fmt: skip
    _put(result, "avss", axes, score,
         "variance over sparsity, as a share of all points' (AVSS)")  # fmt: skip
    _put(result, "anisotropy", axes, together, "mean cosine of two different rows at a point")
    influence = [state.influence[n] for n in range(2)]
    between = state.cosine, state.compared
    low, high = (np.full((len(TOKEN_SETS), layers), np.nan) for _ in range(2))
    value, linear = low.copy(), low.copy()
    # A layer joins the points l and l + 1; where one is not stored, nothing can be said.
    joins = [(at, int(p)) for at, p in enumerate(points[:-1]) if points[at + 1] == p + 1]
    for place, token_set in enumerate(TOKEN_SETS):
        ends = interval(_ratios(influence, token_set), level)
        for at, layer in joins:
            number = _of(token_set, between[1])[at, at + 1]
            if number:
                value[place, layer] = 1 - _of(token_set, between[0])[at, at + 1] / number
            low[place, layer], high[place, layer] = ends[0][at], ends[1][at]
            linear[place, layer] = of_points["linearity"][place, at]
    by_layer = ("token_set", "layer")
    meaning = "1 - mean cosine of a layer's input and output"
    _put(result, "block_influence", by_layer, value, meaning)
    _put(result, "block_influence_low", by_layer, low, f"{meaning}: low end of the interval")
    _put(result, "block_influence_high", by_layer, high, f"{meaning}: high end of the interval")
    _put(result, "linearity", by_layer, linear,
         "R² of the best linear map from a layer's input to its output, in sample")  # fmt: skip


def _add_massive(result: xr.Dataset, state: Overview, magnitude: Float64) -> None:
    joined = []
    for token_set in TOKEN_SETS:
        one = Massive.of(*state.direction.shape[1:])
        one.merge(state.massive[0])
        if token_set == "all":
            one.merge(state.massive[1])
        joined.append(one)
    axes = ("token_set", "point", "rank")
    for name, meaning, unit in (
        ("value", "largest values by magnitude", "1"),
        ("row", "row of that value", "row"),
        ("position", "its position in the document", "token"),
        ("dimension", "its dimension", "1"),
    ):
        values = np.stack([getattr(one, name) for one in joined])
        _put(result, f"massive_{name}", axes, values, meaning, unit)
    _put(result, "massive_count", axes[:2], np.stack([one.count for one in joined]),
         "values that are massive: above 100 and 1,000 medians", "1")  # fmt: skip
    _put(result, "massive_dimension_count", ("token_set", "point", "dimension"),
         np.stack([one.dimensions for one in joined]), "massive values by dimension")  # fmt: skip
    _put(result, "median_magnitude", ("point",), magnitude, "median magnitude of a few rows")


def _of(token_set: str, values: Any) -> Any:
    """Sums of a token set from those of content rows and of others."""
    return values[0] if token_set == "content" else values[0] + values[1]


def _ratios(draws: Sequence[PoissonBootstrap], token_set: str) -> Float64:
    sums = _of(token_set, [one.sums for one in draws])
    counts = _of(token_set, [one.counts for one in draws])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counts > 0, sums / counts, np.nan)


def _put(
    result: xr.Dataset, name: str, axes: tuple[str, ...], values: Any, meaning: str, unit: str = "1"
) -> None:
    result[name] = (axes, np.asarray(values), {"long_name": meaning, "units": unit})
