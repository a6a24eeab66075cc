"""Charts and sentences of a run's geometry."""

from __future__ import annotations

import numpy as np
import xarray as xr

from .charts import TOKEN_SET_STYLES, Chart, Curve, Floats, Matrix, Panel, curve_of, floats

_SHAPES = (
    "Effective rank and participation ratio say how many directions the vectors at a point use: "
    "many for a stream that spreads its information, few where one direction dominates. "
    "Anisotropy is the mean cosine of two different tokens' vectors: near 1 they all point the "
    "same way. The sparsity is the share of values near zero."
)
_CHANGED = (
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
    sample = f"{model}, {len(result.layer)} layers. Tokens: {', '.join(rows)}"
    return _similarity(result, sample), _change(result, sample), _shape(result, sample)


def _similarity(result: xr.Dataset, sample: str) -> Chart:
    points, content = floats(result["point"]), result.sel(token_set="content")
    return Chart(
        "similarity",
        "Similarity of points",
        "Which stretches of layers leave the stream as it is",
        f"{sample}; content tokens are shown.",
        _ALIKE,
        (
            _matrix(content, "cka", "Linear CKA", points, (0.0, 1.0)),
            _matrix(content, "cosine", "Mean cosine", points, (-0.2, 1.0)),
        ),
    )


def _change(result: xr.Dataset, sample: str) -> Chart:
    return Chart(
        "layer_change",
        "Change by layer",
        "How much each layer changes the stream, and how linearly",
        f"{sample}. Bands: bootstrap intervals over documents.",
        _CHANGED,
        (
            Panel("Block influence", "Layer", "1 - cosine of input and output",
                  _curves(result, "block_influence", "layer")),
            Panel("Linearity", "Layer", "R² of the best linear map",
                  _curves(result, "linearity", "layer")),
        ),
    )  # fmt: skip


def _shape(result: xr.Dataset, sample: str) -> Chart:
    return Chart(
        "shape",
        "Shape of the stream",
        "How many directions the stream uses at every point",
        f"{sample}.",
        _SHAPES,
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
    values = floats(result[name])
    return Matrix(title, "Point", "Point", title, points, points, values, limits)


def _curves(result: xr.Dataset, name: str, axis: str) -> tuple[Curve, ...]:
    return tuple(
        curve_of(result.sel(token_set=token_set), name, f"{name}_", f"{token_set} tokens",
                 TOKEN_SET_STYLES[token_set], axis=axis)
        for token_set in ("content", "all")
    )  # fmt: skip
