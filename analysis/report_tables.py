"""Tables of the report: the numbers behind every figure, shown in part and to download whole."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from .depth_table import depth_table

#: Rows of a table that the page shows, and that it carries for downloading (about 3 MB).
SHOWN_ROWS, CARRIED_ROWS = 400, 30_000

#: Variables of geometry in the table of each of its figures, which have axes of their own.
_GEOMETRY = {
    "similarity": ["cka", "cka_low", "cka_high", "cosine"],
    "layer_change": ["block_influence", "block_influence_low", "block_influence_high", "linearity"],
    "shape": [
        "effective_rank",
        "participation_ratio",
        "anisotropy",
        "sparsity",
        "variance",
        "avss",
    ],
}


def result_tables(
    label: str, results: Mapping[str, xr.Dataset | None]
) -> dict[str, dict[str, Any]]:
    """The tables of one store, by name.

    Parameters
    ----------
    label
        The store's, for the files' names.
    results
        Result datasets by the name of their analysis; None where there is none.
    """
    frames: dict[str, pd.DataFrame] = {}
    for name, result in results.items():
        if result is None:
            continue
        if name == "interactions":
            frames |= _interaction_frames(result)
        elif name == "depth":
            frames[name] = depth_table({label: result})
        elif name == "depth_score":
            frames |= _score_frames(result)
        elif name in ("erasure", "gradients"):
            frames |= _token_frames(name, result)
        elif name == "probes":
            frames[name] = _frame(result.drop_vars(["ridge", "fold", "task"]))
        elif name == "geometry":
            frames |= {figure: _frame(result[names]) for figure, names in _GEOMETRY.items()}
        else:
            frames[name] = _frame(result)
    return {name: table(f"{file_stem(label)}_{name}", frame) for name, frame in frames.items()}


def table_of(figure: str) -> str:
    """Name of the table that belongs to a figure, by the figure's name."""
    starts = {"cosines": "contributions", "interactions": "interactions",
              "output_effects": "output_effects", "probes": "probes"}  # fmt: skip
    return next((name for start, name in starts.items() if figure.startswith(start)), figure)


def table(name: str, frame: pd.DataFrame) -> dict[str, Any]:
    """A table as the page's template takes it; too long a one is not carried along."""
    address = None
    if len(frame) <= CARRIED_ROWS:
        content = base64.b64encode(frame.to_csv(index=False, float_format="%.6g").encode())
        address = f"data:text/csv;charset=utf-8;base64,{content.decode()}"
    shown = frame.iloc[:SHOWN_ROWS]
    note = ""
    if len(frame) > len(shown):
        note = f"The first {len(shown):,} of {len(frame):,} rows; " + (
            "all of them are among the tables to download."
            if address
            else "all of them are in the store's analysis folder."
        )
    return {
        "file": f"{name}.csv",
        "address": address,
        "columns": list(frame.columns),
        "rows": [[_shown(value) for value in row] for row in shown.itertuples(index=False)],
        "length": len(frame),
        "note": note,
    }


def file_stem(label: str) -> str:
    """A label as a part of a file's name."""
    return re.sub(r"[^\w.-]+", "_", label).strip("._") or "store"


def _frame(result: xr.Dataset) -> pd.DataFrame:
    frame = result.to_dataframe().reset_index()
    first = [column for column in result.dims if column in frame]
    return frame[[*first, *(column for column in frame.columns if column not in first)]]


def _interaction_frames(result: xr.Dataset) -> dict[str, pd.DataFrame]:
    """Pairs of layers whose target is the later one, and the output effects of each source."""
    pairs = result[[n for n, v in result.data_vars.items() if {"source", "target"} <= set(v.dims)]]
    bars = result[
        [n for n, v in result.data_vars.items() if "source" in v.dims and "target" not in v.dims]
    ]
    frame = _frame(pairs)
    frame = frame[(frame["target"] > frame["source"]) & (frame["count"] > 0)]
    outputs = _frame(bars)
    return {
        "interactions": frame.reset_index(drop=True),
        "output_effects": outputs[outputs["output_count"] > 0].reset_index(drop=True),
    }


def _score_frames(result: xr.Dataset) -> dict[str, pd.DataFrame]:
    trends = result[[name for name, v in result.data_vars.items() if v.dims == ("measure",)]]
    levels = result[[name for name, v in result.data_vars.items() if "level" in v.dims]]
    return {
        "depth_score": _frame(levels.drop_vars(["profile", "source"])),
        "depth_score_trend": _frame(trends.drop_vars(["level", "level_number", "source"],
                                                     errors="ignore")),
    }  # fmt: skip


def _token_frames(name: str, result: xr.Dataset) -> dict[str, pd.DataFrame]:
    """Means by point or layer; and the first documents' rows, as the page can carry them."""
    rows = [n for n, v in result.data_vars.items() if "row" in v.dims]
    each = int(np.prod([size for dim, size in result.sizes.items() if dim != "row"]))
    places = result.drop_vars(rows).drop_vars(["row", "document", "position", "token"])
    return {
        name: _frame(places),
        f"{name}_tokens": _frame(result[rows].isel(row=slice(CARRIED_ROWS // each))).dropna(),
    }


def _shown(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return str(value)
