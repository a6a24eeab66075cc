"""Reading stores and reducing them to results; knows Dask and xarray, never the model."""

from .analyze import ANALYSES, analyze
from .contributions import contributions
from .convert import to_pandas, to_torch
from .lens import lens
from .query import query, run_query
from .results import open_result
from .store import Run, open

__all__ = [
    "ANALYSES",
    "Run",
    "analyze",
    "contributions",
    "lens",
    "open",
    "open_result",
    "query",
    "run_query",
    "to_pandas",
    "to_torch",
]
