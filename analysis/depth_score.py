"""Whether harder documents use deeper layers: the depth score by level.

A score is Σ s·e_s / Σ e_s over source layers s, the centre of mass of what layers do to future
positions: e_s = (1/(L-1-s)) Σ_{l>s} E(s, l), s = 0..L-2, for the measure ``layer``, and the effect
on future predictions, s = 0..L-1, for ``output``. Equal e_s give (L-2)/2 and (L-1)/2. E is the mean
over the level's documents, as in ``interactions``; ``score_max`` takes the largest of documents,
splits and positions instead, as Csordás et al. 2025 (section 4.4) do. Scores of single documents
are tested for a trend over the levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

from .bootstrap import ratio_interval
from .client import compute_on
from .depth_profiles import MEASURES, DepthProfiles, centre
from .effect_documents import EffectCounts
from .effects import Effects, open_effects
from .interactions import effects_attributes, effects_parameters
from .levels import Levels, document_levels
from .results import Provenance, result_folder, result_place, reuse_result, save_dataset
from .store import Run
from .summary import Settings
from .trend import TEST, trend

Floats = NDArray[np.float64]

_MEANINGS = {
    "score": "centre of mass of the layers' future effects",
    "low": "low end of the score's bootstrap interval over documents",
    "high": "high end of the score's bootstrap interval over documents",
    "score_max": "score from the largest effects of documents, splits and positions",
    "profile": "mean effect of the source layer, e_s",
    "count": "documents behind the score",
    "trend_count": "documents behind the trend",
    "trend_tau": TEST,
    "trend_p": "p value of trend_tau",
    "trend_slope": "least-squares change of the score per unit of level, over documents",
    "trend_slope_low": "low end of the slope's bootstrap interval over documents",
    "trend_slope_high": "high end of the slope's bootstrap interval over documents",
}
_UNITS = {"profile": "1", "trend_tau": "1", "trend_p": "1", "count": "document",
          "trend_count": "document"}  # fmt: skip


def depth_score(
    run: Run,
    field: str,
    effects: str | None = None,
    *,
    part: str = "layer",
    order: Sequence[str] | None = None,
    partial: bool = False,
    **settings: Any,
) -> xr.Dataset:
    """The depth score of every level of a field, with intervals and a test of the trend.

    Parameters
    ----------
    run
        From ``open``; a selection of whole documents is respected.
    field
        A column of ``documents.parquet``.
    effects
        Name of a sweep with scope ``future``; None for the only one.
    part
        The part that was changed: ``layer``, ``attention`` or ``mlp``.
    order
        The levels to use, in their order; None for all, numbers sorted as numbers.
    partial
        Whether to use an unfinished sweep as far as it is committed.
    settings
        Fields of ``Settings``: resamples, seed, level (of the intervals), out, scheduler, workers.

    Returns
    -------
    xarray.Dataset
        Axes measure (layer, output), level: score, low, high, score_max, count (documents); with
        source: profile. By measure: trend_tau, trend_p, trend_slope, trend_slope_low,
        trend_slope_high, trend_count. Coordinate level_number (level). The trend is NaN where the
        levels have no order. The group ``documents`` holds the score of every document.

    Raises
    ------
    RequestError
        There is no such sweep or field, the sweep lacks scope ``future`` or layers, or no document
        has both a level and effects.
    """
    chosen = Settings(**settings)
    opened = open_effects(run, effects, partial=partial)
    _require_future(opened, part)
    levels = document_levels(run, opened.documents, field, order)
    parameters = {
        **effects_parameters(opened, chosen),
        "field": field,
        "part": part,
        "order": None if order is None else list(order),
    }
    provenance = Provenance.of(run, "depth_score", parameters)
    place = result_place(run, "depth_score", chosen.out)
    found = reuse_result(place, provenance)
    if found is not None:
        return found
    with compute_on(chosen.scheduler, workers=chosen.workers):
        counts = EffectCounts.of(opened)
        profiles = DepthProfiles.of(opened, part)
    _require_scores(opened, profiles, levels, field)
    result = _scores(profiles, levels, chosen)
    result.attrs = {
        **provenance.attributes(),
        **effects_attributes(opened, counts),
        "ordered": levels.ordered,
        "documents_without_level": int((levels.of_document < 0).sum()),
        "documents_without_effects": int((~profiles.usable("layer")).sum()),
    }
    with result_folder(place) as folder:
        save_dataset(_by_document(profiles, levels), folder, "documents")
        save_dataset(result, folder)
    return result


def _require_future(effects: Effects, part: str) -> None:
    record = effects.record
    for option, wanted, known in (
        ("scope", "future", record.scopes),
        ("kind", "propagated", record.kinds),
        ("part", part, record.parts),
    ):
        if wanted not in known:
            raise RequestError(
                f"{effects.root}: effects {record.name} have {option} {', '.join(known)}, and the "
                f"depth score needs {wanted}: run depthscope intervene {effects.root} --{option} "
                f"{wanted} under another --name"
            )
    if len(record.sources) < record.layers:
        raise RequestError(
            f"{effects.root}: effects {record.name} changed {len(record.sources)} of "
            f"{record.layers} layers, and the depth score needs all: run depthscope intervene "
            f"{effects.root} --layers all under another --name"
        )


def _require_scores(effects: Effects, profiles: DepthProfiles, levels: Levels, field: str) -> None:
    usable = profiles.usable("layer") | profiles.usable("output")
    if not (usable & (levels.of_document >= 0)).any():
        raise RequestError(
            f"{effects.root}: no document of effects {effects.record.name} has both a value of "
            f"{field} and effects on future positions"
        )


def _scores(profiles: DepthProfiles, levels: Levels, settings: Settings) -> xr.Dataset:
    shape = len(MEASURES), len(levels.labels)
    found = {name: np.full(shape, np.nan) for name in ("score", "low", "high", "score_max")}
    count = np.zeros(shape, np.int64)
    profile = np.full((*shape, profiles.layers), np.nan)
    for at, place in np.ndindex(shape):
        measure = MEASURES[at]
        mine = profiles.usable(measure) & (levels.of_document == place)
        count[at, place] = mine.sum()
        if not mine.any():
            continue
        means = profiles.mean[measure][mine]
        pooled = means.mean(axis=0)
        profile[at, place, : len(pooled)] = pooled
        found["score"][at, place] = centre(pooled)
        found["score_max"][at, place] = centre(profiles.largest(measure, mine))
        found["low"][at, place], found["high"][at, place] = _interval(means, settings)
    axes = ("measure", "level")
    variables: dict[str, Any] = {name: (axes, values) for name, values in found.items()}
    variables["profile"] = ((*axes, "source"), profile)
    variables["count"] = (axes, count)
    coordinates = {
        "measure": list(MEASURES),
        "level": levels.labels,
        "source": np.arange(profiles.layers),
        "level_number": ("level", levels.numbers),
    }
    return _described(xr.Dataset(variables | _trends(profiles, levels, settings), coordinates))


def _trends(profiles: DepthProfiles, levels: Levels, settings: Settings) -> dict[str, Any]:
    """The trend of single documents' scores, by measure."""
    numbers = np.append(levels.numbers, np.nan)[levels.of_document]
    trends = [
        trend(
            numbers,
            np.where(profiles.usable(one) & levels.ordered, centre(profiles.mean[one]), np.nan),
            resamples=settings.resamples,
            seed=settings.seed,
            confidence=settings.level,
        )
        for one in MEASURES
    ]
    names = ("tau", "p", "slope", "slope_low", "slope_high", "count")
    return {f"trend_{name}": ("measure", [getattr(one, name) for one in trends]) for name in names}


def _described(result: xr.Dataset) -> xr.Dataset:
    for name, variable in result.data_vars.items():
        variable.attrs = {
            "long_name": _MEANINGS[str(name)],
            "units": _UNITS.get(str(name), "layer"),
        }
    return result


def _interval(means: Floats, settings: Settings) -> tuple[float, float]:
    """Interval of the pooled score: a ratio of sums over documents."""
    weighted = (means * np.arange(means.shape[1])).sum(axis=1, keepdims=True)
    low, high = ratio_interval(
        [(weighted, means.sum(axis=1, keepdims=True))],
        len(means),
        1,
        resamples=settings.resamples,
        seed=settings.seed,
        level=settings.level,
    )
    return float(low[0]), float(high[0])


def _by_document(profiles: DepthProfiles, levels: Levels) -> xr.Dataset:
    scores = np.stack([centre(profiles.mean[measure]) for measure in MEASURES])
    return xr.Dataset(
        {
            "score": (("measure", "document"), scores),
            "level_number": ("document", np.append(levels.numbers, np.nan)[levels.of_document]),
        },
        {"measure": list(MEASURES), "document": profiles.documents},
    )
