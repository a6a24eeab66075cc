"""Reading stores and reducing them to results; knows Dask and xarray, never the model."""

from typing import TYPE_CHECKING, Any

from . import accessor as _accessor
from .analyze import ANALYSES, analyze
from .contributions import contributions
from .convert import to_pandas, to_torch
from .depth import depth
from .depth_score import depth_score
from .depth_table import depth_table, ratio_table
from .effect_findings import depth_findings, depth_score_findings, interaction_findings
from .export import export
from .findings import findings
from .flips import flips
from .geometry import geometry
from .geometry_charts import geometry_findings
from .interactions import interactions
from .lens import lens
from .linear_maps import linear_maps
from .map_charts import map_findings
from .onset import onset
from .probe_charts import probe_findings
from .probes import probes
from .query import query, run_query
from .results import open_result
from .store import Run, open
from .token_effect_charts import erasure_findings, gradient_findings
from .token_effects import erasure, gradients
from .tuned_lens import LensSettings, tuned_lens
from .use_findings import flip_findings, onset_findings, tuned_lens_findings

if TYPE_CHECKING:
    from .report import ReportPaths, write_report

del _accessor

__all__ = [
    "ANALYSES",
    "LensSettings",
    "ReportPaths",
    "Run",
    "analyze",
    "contributions",
    "depth",
    "depth_findings",
    "depth_score",
    "depth_score_findings",
    "depth_table",
    "erasure",
    "erasure_findings",
    "export",
    "findings",
    "flip_findings",
    "flips",
    "geometry",
    "geometry_findings",
    "gradient_findings",
    "gradients",
    "interaction_findings",
    "interactions",
    "lens",
    "linear_maps",
    "map_findings",
    "onset",
    "onset_findings",
    "open",
    "open_result",
    "probe_findings",
    "probes",
    "query",
    "ratio_table",
    "run_query",
    "to_pandas",
    "to_torch",
    "tuned_lens",
    "tuned_lens_findings",
    "write_report",
]


def __getattr__(name: str) -> Any:
    # Drawing libraries take a second to import, which no query or reduction should wait for.
    if name in ("ReportPaths", "write_report"):
        from . import report

        return getattr(report, name)
    raise AttributeError(f"depthscope.analysis has no {name}")
