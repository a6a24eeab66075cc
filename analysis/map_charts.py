"""Charts and sentences of linear maps between two models."""

from __future__ import annotations

import numpy as np
import xarray as xr

from .charts import Chart, Curve, Matrix, Panel, Style, floats

_MAPS = (
    "For every point of the one model and every point of the other, the best linear map with "
    "intercept, fitted on one set of documents and tested on another. The relative error is the "
    "mean over held-out tokens of ‖y - ŷ‖ / ‖y‖: 0 where the one point determines the other, and "
    "about the error of the mean predictor where it says nothing. R² is the share of the variance "
    "that the map explains. A deeper model that stretches the same computation over more layers "
    "shows a diagonal; one that computes new things shows targets that no source point predicts."
)
_DEPTH = (
    "For each target point the source point that predicts it best, both as relative depth (point / "
    "layers). On the diagonal, two models hold the same thing at the same relative depth. Bands "
    "show how much the best source depends on which documents were held out."
)


def map_charts(result: xr.Dataset) -> tuple[Chart, Chart]:
    """The errors of all pairs of points, and the best source of each target."""
    source, target = (str(result.attrs.get(f"{side}_model") or side) for side in _SIDES)
    title = f"How well {_short(source)} linearly predicts {_short(target)}"
    panels = (
        _matrix(result, "relative_error", "Relative error", "Mean relative error", None),
        _matrix(result, "r2", "Variance explained", "R²", (0.0, 1.0)),
    )
    errors = Chart("maps", "Linear maps", title, _sample(result), _MAPS, panels)
    depth = np.asarray(result["target_depth"].values, dtype=np.float64)
    line = Curve("Same relative depth", depth, depth, Style("#5a6675", "cross", "dot"))
    best = Curve(
        "Best source",
        depth,
        *(floats(result["best_source_depth"]), Style("#0072b2", "circle", "solid")),
        floats(result["best_source_depth_low"]),
        floats(result["best_source_depth_high"]),
    )
    panel = Panel(
        f"Slope {_interval(result, 'diagonal_slope')}, "
        f"distance from the diagonal {_interval(result, 'diagonal_distance')}",
        f"Relative depth in {_short(target)}",
        f"Best depth in {_short(source)}",
        (best, line),
        (-0.03, 1.03),
    )
    where = Chart(
        "map_depth",
        "Best source by depth",
        f"Where {_short(source)} holds what {_short(target)} holds",
        _sample(result),
        _DEPTH,
        (panel,),
    )
    return errors, where


def map_findings(result: xr.Dataset) -> list[str]:
    """Three sentences: how good the maps are, where they come from, and of how many rows."""
    error = result["relative_error"]
    best = error.min("source_point")
    values = np.asarray(error.transpose("source_point", "target_point").values)
    source, target = np.unravel_index(int(np.nanargmin(values)), values.shape)
    at = result.isel(source_point=int(source), target_point=int(target))
    mean = float(at["baseline_mean_error"])
    better = int((best < result["baseline_mean_error"].min("source_point")).sum())
    return [
        f"The best map, from point {int(at['source_point'])} to point {int(at['target_point'])}, "
        f"has a mean relative error of {_interval(at, 'relative_error')} on held-out tokens, "
        f"where the mean predictor has {mean:.2f}; {better} of {best.size} target points are "
        "predicted better than by their mean.",
        f"The best source depth rises with slope {_interval(result, 'diagonal_slope')} over the "
        f"target's relative depth, at a mean distance of "
        f"{_interval(result, 'diagonal_distance')} from the diagonal.",
        f"{_sample(result)} {100 * result.attrs['paired_share']:.1f}% of the source's and "
        f"{100 * result.attrs['paired_share_target']:.1f}% of the target's rows pair, by "
        f"{_RULES[result.attrs['paired_by']]}; {result.attrs['massive_rows']:,} massive rows are "
        "left out.",
    ]


_SIDES = ("source", "target")
_RULES = {"tokens": "equal tokens", "offsets": "character offsets"}


def _matrix(
    result: xr.Dataset,
    name: str,
    title: str,
    label: str,
    limits: tuple[float, float] | None,
) -> Matrix:
    values = np.asarray(result[name].transpose("target_point", "source_point").values)
    finite = values[np.isfinite(values)]
    # Points that nothing predicts would take the colours from all others.
    mean = np.asarray(result["baseline_mean_error"].values)
    top = float(min(finite.max(initial=0.0), np.nanmax(mean))) or 1.0
    details = [("R²", "r2"), ("relative error", "relative_error"), ("ridge", "ridge"),
               ("mean predictor", "baseline_mean_error")]  # fmt: skip
    return Matrix(
        title,
        "Source point",
        "Target point",
        label,
        np.asarray(result["source_point"].values, dtype=np.float64),
        np.asarray(result["target_point"].values, dtype=np.float64),
        values,
        limits or (0.0, top),
        tuple(
            (words, np.asarray(result[other].transpose("target_point", "source_point").values))
            for words, other in details
            if other != name
        ),
    )


def _sample(result: xr.Dataset) -> str:
    facts = result.attrs
    return (
        f"{facts['train_rows']:,} training rows of {facts['train_documents']:,} documents, "
        f"{facts['test_rows']:,} held-out rows of {facts['test_documents']:,}."
    )


def _interval(result: xr.Dataset, name: str) -> str:
    value, low, high = (float(result[f"{name}{end}"]) for end in ("", "_low", "_high"))
    if not np.isfinite([low, high]).all():
        return f"{value:.2f}"
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _short(model: str) -> str:
    return model.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
