"""From the scores of probes to their dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .poisson_bootstrap import interval
from .probe_rules import JUMP, STEADY, convergence_place, jump_place
from .probe_scores import Scores
from .probe_units import UnitReader
from .store import Run

Float64 = NDArray[np.float64]

CLASSIFIER = (
    "linear discriminant with a ridge on standardised dimensions, the ridge chosen by generalised "
    "cross-validation on the training documents"
)
CONTROL = {
    True: "a random class for every token type, with the classes' shares",
    False: "a random class for every document, with the classes' shares",
}
POOLED = {
    "last": "the last row of each document",
    "mean": "the mean of each document's content rows",
    "each": "every content row",
}

#: The place on a curve, by the name of its variable, with its meaning.
PLACES: dict[str, tuple[Callable[[Float64], Float64], str]] = {
    "jump_point": (jump_place, f"first point whose accuracy is {JUMP} times that before"),
    "convergence_point": (
        convergence_place,
        f"first point from which no step changes the accuracy by {STEADY:.0%}",
    ),
}


@dataclass(frozen=True, eq=False)
class Found:
    """What the passes have found.

    Attributes
    ----------
    run, reader
        Whose rows were read, and how.
    parts
        Scores of consecutive points.
    ridges
        (task, fold, point): λ over training rows.
    level
        Coverage of the intervals.
    """

    run: Run
    reader: UnitReader
    parts: Sequence[Scores]
    ridges: Float64
    level: float


def probe_dataset(found: Found) -> tuple[xr.Dataset, xr.Dataset]:
    """The result, and its values by document."""
    labels, first = found.reader.labels, found.parts[0]
    accuracy = np.concatenate([part.accuracy() for part in found.parts], axis=-1)
    drawn = np.concatenate([part.resampled() for part in found.parts], axis=-1)
    points = np.array(found.run.points, dtype=np.int64)
    result = xr.Dataset(
        coords={
            "label": np.array([pooled_name(labels.classes), *labels.classes]),
            "point": points,
            "task": np.array(["label", "control"]),
            "fold": np.arange(found.ridges.shape[1]),
        }
    )
    curves = (
        ("", "accuracy", "share of units that are classified right", accuracy[0], drawn[:, 0]),
        ("control_", "control_accuracy", "the same with random labels", accuracy[1], drawn[:, 1]),
        ("selectivity_", "selectivity", "accuracy less control accuracy",
         accuracy[0] - accuracy[1], drawn[:, 0] - drawn[:, 1]),
    )  # fmt: skip
    for prefix, name, meaning, values, resampled in curves:
        _put(result, name, ("label", "point"), values, meaning)
        for end, bound in zip(("low", "high"), _ends(resampled, found.level), strict=True):
            text = f"{meaning}: {end} end of the bootstrap interval over documents"
            _put(result, f"{prefix}{end}", ("label", "point"), bound, text)
    for name, (rule, meaning) in PLACES.items():
        _add_place(result, name, meaning, rule, drawn[:, 0], found.level)
    _put(result, "count", ("label",), first.count.astype(np.int64), "units", "1")
    share = first.count / max(first.count[0], 1)
    _put(result, "share_of_class", ("label",), share, "share of the units")
    _put(result, "ridge", ("task", "fold", "point"), found.ridges, "ridge over training units")
    documents = xr.Dataset(
        {
            "correct": (
                ("task", "document", "point"),
                np.concatenate([part.of_document for part in found.parts], axis=-1),
            ),
            "units": ("document", first.units),
            "fold": ("document", labels.fold.astype(np.int64)),
        },
        {"task": result["task"].values, "document": labels.documents, "point": points},
    )
    return result.assign_attrs(_attributes(found, first)), documents


def pooled_name(classes: Sequence[str]) -> str:
    """What all classes together are called."""
    return "all" if "all" not in classes else "all classes"


def _add_place(
    result: xr.Dataset,
    name: str,
    meaning: str,
    rule: Callable[[Float64], Float64],
    drawn: Float64,
    level: float,
) -> None:
    points = np.append(result["point"].values, -1).astype(np.float64)

    def point(places: Float64) -> Float64:
        at = np.where(np.isnan(places), -1, places).astype(np.int64)
        return np.asarray(np.where(np.isnan(places), np.nan, points[at]))

    value, resampled = point(rule(result["accuracy"].values)), point(rule(drawn))
    low, high = _ends(resampled, level, whole=True)
    none = np.isnan(value)
    _put(result, name, ("label",), value, meaning, "point")
    for end, bound in (("low", low), ("high", high)):
        text = f"{meaning}: {end} end of the bootstrap interval over documents"
        _put(result, f"{name}_{end}", ("label",), np.where(none, np.nan, bound), text, "point")
    share = np.isfinite(resampled).mean(axis=0) if len(resampled) else np.full(len(value), np.nan)
    _put(result, f"{name}_share", ("label",), share, "share of resamples that have such a point")


def _ends(drawn: Float64, level: float, whole: bool = False) -> tuple[Float64, Float64]:
    """Percentile interval over resamples; to whole points outwards where they are points."""
    if not len(drawn):
        nothing = np.full(drawn.shape[1:], np.nan)
        return nothing, nothing
    if not whole:
        return interval(drawn, level)
    tail, none = 50 * (1 - level), ~np.isfinite(drawn).any(axis=0)
    filled = np.where(none, 0.0, drawn)
    low = np.nanpercentile(filled, tail, axis=0, method="lower")
    high = np.nanpercentile(filled, 100 - tail, axis=0, method="higher")
    return np.where(none, np.nan, low), np.where(none, np.nan, high)


def _attributes(found: Found, scores: Scores) -> dict[str, Any]:
    labels = found.reader.labels
    return {
        "label": labels.field,
        "label_of": "tokens" if labels.of_tokens else "documents",
        "units": POOLED[found.reader.pool],
        "classifier": CLASSIFIER,
        "control": CONTROL[labels.of_tokens],
        "documents": int((scores.units > 0).sum()),
        "without_label": labels.left_out[0],
        "left_out": labels.left_out[1],
        "passes": 2 * len(found.parts),
        "layers": found.run.layers,
    }


def _put(
    result: xr.Dataset, name: str, axes: tuple[str, ...], values: Any, meaning: str, unit: str = "1"
) -> None:
    result[name] = (axes, np.asarray(values), {"long_name": meaning, "units": unit})
