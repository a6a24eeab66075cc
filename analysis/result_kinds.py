"""What each kind of result looks like: its charts and its sentences, by the name of its analysis.

Accessor, report and command line all ask here, so that a result is never drawn in one of them and
missing in another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import xarray as xr

from .charts import Chart
from .depth_charts import depth_chart, depth_score_chart
from .effect_charts import interaction_charts, output_charts
from .effect_findings import depth_findings, depth_score_findings, interaction_findings
from .geometry_charts import geometry_charts, geometry_findings
from .map_charts import map_charts, map_findings
from .probe_charts import probe_charts, probe_findings
from .result_charts import contribution_charts, lens_chart
from .token_effect_charts import (
    erasure_charts,
    erasure_findings,
    gradient_charts,
    gradient_findings,
)
from .use_charts import flip_chart, onset_chart, tuned_lens_chart
from .use_findings import flip_findings, onset_findings, tuned_lens_findings


@dataclass(frozen=True)
class ResultKind:
    """How results of one kind are shown.

    Attributes
    ----------
    charts
        Makes the figures from a result and a short name of its model.
    sentences
        Says what was found.
    """

    charts: Callable[[xr.Dataset, str], tuple[Chart, ...]]
    sentences: Callable[[xr.Dataset], list[str]]


def _rows(result: xr.Dataset) -> list[str]:
    return [f"{int(result['count'].sel(token_set='all')):,} rows"]


def _interactions(result: xr.Dataset, model: str) -> tuple[Chart, ...]:
    return interaction_charts(result, model) + output_charts(result, model)


def _depth(result: xr.Dataset, model: str) -> tuple[Chart, ...]:
    chart = depth_chart({model: result})
    return (chart,) if chart else ()


#: Every kind by the name of its analysis, which a result's own name begins with (``onset_pos``).
KINDS: dict[str, ResultKind] = {
    "contributions": ResultKind(contribution_charts, _rows),
    "lens": ResultKind(lambda result, model: (lens_chart(result, model),), _rows),
    "tuned_lens": ResultKind(
        lambda result, model: (tuned_lens_chart(result, model),), tuned_lens_findings
    ),
    "flips": ResultKind(lambda result, model: (flip_chart(result, model),), flip_findings),
    "onset": ResultKind(lambda result, model: (onset_chart(result, model),), onset_findings),
    "probes": ResultKind(probe_charts, probe_findings),
    "depth": ResultKind(_depth, depth_findings),
    "geometry": ResultKind(geometry_charts, geometry_findings),
    "interactions": ResultKind(_interactions, interaction_findings),
    "depth_score": ResultKind(
        lambda result, model: (depth_score_chart(result, model),), depth_score_findings
    ),
    "erasure": ResultKind(erasure_charts, erasure_findings),
    "gradients": ResultKind(gradient_charts, gradient_findings),
    "maps": ResultKind(lambda result, _: map_charts(result), map_findings),
}


def kind_name(name: str) -> str | None:
    """The kind of a result by its name, such as ``onset`` for ``onset_pos``; None for none."""
    kinds = [kind for kind in KINDS if name == kind or name.startswith(f"{kind}_")]
    return max(kinds, key=len, default=None)


def charts_of(name: str, result: xr.Dataset, model: str) -> tuple[Chart, ...]:
    """The figures of a result; none where there is nothing to draw or the kind is unknown."""
    kind = kind_name(name)
    return () if kind is None else KINDS[kind].charts(result, model)


def sentences_of(name: str, result: xr.Dataset) -> list[str]:
    """What was found, in words; none where the kind is unknown."""
    kind = kind_name(name)
    return [] if kind is None else KINDS[kind].sentences(result)
