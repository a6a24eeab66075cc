"""Charts and sentences of a run's geometry."""

from __future__ import annotations

import numpy as np
import xarray as xr

from .charts import TOKEN_SET_STYLES, Chart, Curve, Floats, Matrix, Panel

_SHAPE = (
    "Effective rank and participation ratio say how many directions the vectors at a point use: "
    "many for a stream that spreads its information, few where one direction dominates. "
    "Anisotropy is the mean cosine of two different tokens' vectors: near 1 they all point the "
    "same way. The sparsity is the share of values near zero."
)
_CHANGE = (
    "What a layer changes: block influence is 1 - the cosine of its input and output, so 0 is a "
    "layer that only scales; linearity is the share of its output that the best linear map of its "
    "input gives, so 1 is a layer that computes nothing a matrix could not. Layers low in the one "
    "and high in the other are the first that a model can do without."
)
_ALIKE = (
    "How alike the stream is at two points. Linear CKA compares which tokens lie close to which, "
    "blind to rotation and scale; the cosine compares the vectors themselves. Blocks of high "
    "similarity are stretches of layers that leave the representation as it is."
)


def geometry_charts(result: xr.Dataset, model: str) -> tuple[Chart, Chart, Chart]:
    """Similarity of points, change by layer, and the shape of each point."""
    rows = (f"{int(result['count'].sel(token_set=name)):,} {name}" for name in ("content", "all"))
    subtitle = f"{model}, {len(result.layer)} layers. Tokens: {', '.join(rows)}"
    intervals = f"{subtitle}. Bands: bootstrap intervals over documents."
    points = np.asarray(result["point"].values, dtype=np.float64)
    content = result.sel(token_set="content")
    alike = Chart(
        "similarity",
        "Similarity of points",
        "Which stretches of layers leave the stream as it is",
        f"{subtitle}; content tokens are shown.",
        _ALIKE,
        (
            _matrix(content, "cka", "Linear CKA", points, (0.0, 1.0)),
            _matrix(content, "cosine", "Mean cosine", points, (-0.2, 1.0)),
        ),
    )
    change = Chart(
        "layer_change",
        "Change by layer",
        "How much each layer changes the stream, and how linearly",
        intervals,
        _CHANGE,
        (
            Panel("Block influence", "Layer", "1 - cosine of input and output",
                  _curves(result, "block_influence", "layer")),
            Panel("Linearity", "Layer", "R² of the best linear map",
                  _curves(result, "linearity", "layer")),
        ),
    )  # fmt: skip
    shape = Chart(
        "shape",
        "Shape of the stream",
        "How many directions the stream uses at every point",
        f"{subtitle}.",
        _SHAPE,
        tuple(
            Panel(title, "Point of the residual stream", label, _curves(result, name, "point"))
            for name, title, label in (
                ("effective_rank", "Effective rank", "Directions"),
                ("participation_ratio", "Participation ratio", "Directions"),
                ("anisotropy", "Anisotropy", "Mean cosine of two tokens"),
                ("sparsity", "Sparsity", "Share of values near zero"),
            )
        ),
    )
    return alike, change, shape


def geometry_findings(result: xr.Dataset) -> list[str]:
    """Sentences about the least needed layers, the use of directions, and massive activations."""
    content = result.sel(token_set="content")
    found = []
    influence = np.asarray(content["block_influence"].values)
    if np.isfinite(influence).any():
        least = int(np.nanargmin(influence))
        low, high = (float(content[f"block_influence_{e}"][least]) for e in ("low", "high"))
        found.append(
            f"Over content tokens, layer {least} changes the stream's direction least: block "
            f"influence {influence[least]:.3f} [{low:.3f}, {high:.3f}]."
        )
    rank = np.asarray(content["effective_rank"].values)
    if np.isfinite(rank).any():
        few, many = int(np.nanargmin(rank)), int(np.nanargmax(rank))
        points = result["point"].values
        found.append(
            f"Content tokens use between {rank[few]:.0f} (point {points[few]}) and "
            f"{rank[many]:.0f} (point {points[many]}) effective directions of "
            f"{len(result.dimension)}."
        )
    every = result.sel(token_set="all")
    counts = np.asarray(every["massive_count"].values)
    if counts.any():
        at = int(np.abs(every["massive_value"].values[:, 0]).argmax())
        top = every.isel(point=at, rank=0)
        found.append(
            f"{int((counts > 0).sum())} points have massive activations; the largest is "
            f"{float(top['massive_value']):,.0f} in dimension {int(top['massive_dimension'])} at "
            f"point {int(top['point'])}, position {int(top['massive_position'])}."
        )
    else:
        found.append("No point has massive activations (above 100 and 1,000 medians).")
    return found


def _matrix(
    result: xr.Dataset, name: str, title: str, points: Floats, limits: tuple[float, float]
) -> Matrix:
    values = np.asarray(result[name].values, dtype=np.float64)
    return Matrix(title, "Point", "Point", title, points, points, values, limits)


def _curves(result: xr.Dataset, name: str, axis: str) -> tuple[Curve, ...]:
    curves = []
    for token_set in ("content", "all"):
        chosen = result.sel(token_set=token_set)
        x = np.asarray(result[axis].values, dtype=np.float64)
        ends = [
            np.asarray(chosen[f"{name}_{end}"].values, dtype=np.float64)
            if f"{name}_{end}" in chosen
            else None
            for end in ("low", "high")
        ]
        values = np.asarray(chosen[name].values, dtype=np.float64)
        style = TOKEN_SET_STYLES[token_set]
        curves.append(Curve(f"{token_set} tokens", x, values, style, ends[0], ends[1]))
    return tuple(curves)
