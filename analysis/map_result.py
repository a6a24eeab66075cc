"""Maps as datasets: what was found, with intervals over held-out documents, and of what."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .bootstrap import RatioBootstrap
from .map_choice import Choice
from .map_errors import Errors
from .map_inputs import MapInputs
from .map_plan import Plan
from .map_rows import RowMask
from .map_settings import MapSettings
from .relative_depth import diagonal
from .shared_documents import TEST

Float64 = NDArray[np.float64]

_PAIR = ("source_point", "target_point")
_RULE = "norm at any point of either store above {factor:g} times the median norm at that point"


def map_result(
    inputs: MapInputs, plan: Plan, mask: RowMask, choice: Choice, errors: Errors
) -> tuple[xr.Dataset, xr.Dataset]:
    """The result, and its sums by held-out document.

    Parameters
    ----------
    inputs
        What was mapped.
    plan, mask, choice, errors
        What the steps have left: tiles, rows that took part, ridges, errors on held-out rows.
    """
    result = _axes(inputs)
    rows = max(int(errors.rows.sum()), 1)
    relative = errors.relative.sum(axis=0) / rows
    r2, r2_dimension = errors.r2()
    bounds, resampled = _intervals(errors, inputs.settings)
    _put(result, "relative_error", relative, "mean relative error on held-out rows", bounds[0])
    _put(result, "r2", r2, "share of held-out variance explained, all dimensions", bounds[1])
    meaning = {
        "ridge": ("ridge λ chosen on validation rows; 0 is least squares", choice.ridge),
        "baseline_mean_error": (
            "mean relative error of the training mean",
            np.broadcast_to(errors.mean_predictor / rows, relative.shape).copy(),
        ),
        "baseline_identity_error": (
            "mean relative error of the source's own vector; NaN where dimensions differ",
            errors.identity / rows,
        ),
        "baseline_shuffled_error": (
            "mean relative error of a map trained on shuffled targets at the same ridge",
            errors.shuffled / rows,
        ),
    }
    for name, (long_name, values) in meaning.items():
        _put(result, name, values, long_name)
    result["r2_dimension"] = (
        (*_PAIR, "dimension"),
        r2_dimension.astype(np.float32),
        {"long_name": "share of held-out variance explained, by target dimension", "units": "1"},
    )
    result["count"] = ((), int(errors.rows.sum()), {"long_name": "held-out rows", "units": "row"})
    best = diagonal(
        relative,
        resampled,
        result["source_depth"].values,
        result["target_depth"].values,
        inputs.sides[0].points,
        inputs.settings.level,
    )
    result = result.merge(best).assign_attrs(_attributes(inputs, plan, mask))
    held_out = np.unique(inputs.pairs.document[inputs.parts[TEST]])
    return result, _by_document(errors, result, inputs.shared.source[held_out])


def _axes(inputs: MapInputs) -> xr.Dataset:
    axes: dict[str, Any] = {"dimension": np.arange(inputs.sides[1].width)}
    for name, side, run in zip(("source", "target"), inputs.sides, inputs.runs, strict=True):
        points = np.array(side.points, dtype=np.int64)
        axes[f"{name}_point"] = points
        depth = points / run.layers
        axes[f"{name}_depth"] = (f"{name}_point", depth, {"long_name": "point / layers"})
    return xr.Dataset(coords=axes)


def _intervals(errors: Errors, settings: MapSettings) -> tuple[list[tuple[Float64, ...]], Float64]:
    """Ends for relative error and R², each (sources, targets), and resampled relative errors."""
    shape, used = errors.relative.shape[1:], errors.rows > 0
    documents = int(used.sum())
    if documents < 2:
        nothing = np.full(shape, np.nan)
        return [(nothing, nothing)] * 2, np.empty((0, *shape))
    rows = errors.rows[used, None].astype(np.float64)
    # R² is measured around the held-out rows' own mean, which every document bears its share of.
    total = max(int(errors.rows.sum()), 1)
    shift = total * np.square(errors.sum_dimension / total).sum(axis=-1)
    varied = np.maximum(errors.variation.sum(axis=0), np.finfo(np.float64).tiny)
    around = errors.variation[used] * (1 - shift / varied)
    ends: list[tuple[Float64, ...]] = []
    drawn = []
    for sums, counts in (
        (errors.relative[used], np.broadcast_to(rows[:, :, None], errors.relative[used].shape)),
        (errors.square[used], np.broadcast_to(around[:, None], errors.square[used].shape)),
    ):
        size = int(np.prod(shape))
        bootstrap = RatioBootstrap(
            documents, size, resamples=settings.resamples, seed=settings.seed
        )
        bootstrap.add(sums.reshape(documents, -1), counts.reshape(documents, -1))
        ends.append(tuple(end.reshape(shape) for end in bootstrap.interval(settings.level)))
        drawn.append(bootstrap.ratios().reshape(-1, *shape))
    ends[1] = (1 - ends[1][1], 1 - ends[1][0])
    return ends, drawn[0]


def _put(
    result: xr.Dataset,
    name: str,
    values: Float64,
    meaning: str,
    ends: tuple[Float64, ...] | None = None,
) -> None:
    result[name] = (_PAIR, values, {"long_name": meaning, "units": "1"})
    for end, bound in zip(("low", "high"), ends or (), strict=False):
        text = f"{meaning}: {end} end of the bootstrap interval over documents"
        result[f"{name}_{end}"] = (_PAIR, bound, {"long_name": text, "units": "1"})


def _attributes(inputs: MapInputs, plan: Plan, mask: RowMask) -> dict[str, Any]:
    pairs, parts, runs = inputs.pairs, inputs.parts, inputs.runs
    kept = [int(mask.kept[part].sum()) for part in parts]
    documents = [len(np.unique(pairs.document[part])) for part in parts]
    models = [run.snapshots[0].record.model.get("name", "") for run in runs]
    massive = inputs.settings.massive
    rule = _RULE.format(factor=massive) if massive else "none"
    return {
        "source_model": models[0],
        "target_model": models[1],
        "source_layers": runs[0].layers,
        "target_layers": runs[1].layers,
        "train_rows": kept[0],
        "validation_rows": kept[1],
        "test_rows": kept[2],
        "train_documents": documents[0],
        "validation_documents": documents[1],
        "test_documents": documents[2],
        "shared_documents": len(inputs.shared),
        "paired_by": pairs.rule,
        "paired_share": pairs.shares[0],
        "paired_share_target": pairs.shares[1],
        "massive_rule": rule,
        "massive_rows": mask.massive,
        "nonfinite_rows": mask.nonfinite,
        "training_passes": len(plan.tiles),
        "held_out_passes": 1,
        "moment_bytes": plan.moments,
    }


def _by_document(errors: Errors, result: xr.Dataset, documents: NDArray[np.int64]) -> xr.Dataset:
    axes = ("document", *_PAIR)
    return xr.Dataset(
        {
            "rows": ("document", errors.rows),
            "relative_error_sum": (axes, errors.relative),
            "square_error_sum": (axes, errors.square),
            "variation_sum": (("document", "target_point"), errors.variation),
        },
        coords={
            "document": documents,
            "source_point": result["source_point"].values,
            "target_point": result["target_point"].values,
        },
    )
