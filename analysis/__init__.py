"""Reading stores and reducing them to results; knows Dask and xarray, never the model."""

from . import accessor as _accessor
from .analyze import ANALYSES, analyze
from .contributions import contributions
from .convert import to_pandas, to_torch
from .findings import findings
from .lens import lens
from .query import query, run_query
from .report import ReportPaths, write_report
from .results import open_result
from .store import Run, open

del _accessor

__all__ = [
    "ANALYSES",
    "ReportPaths",
    "Run",
    "analyze",
    "contributions",
    "findings",
    "lens",
    "open",
    "open_result",
    "query",
    "run_query",
    "to_pandas",
    "to_torch",
    "write_report",
]
