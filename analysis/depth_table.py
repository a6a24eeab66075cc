"""Tables of the effective depth of several stores: over models, sizes and corpora."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

_COLUMNS = ("effective_depth", "low", "high", "ratio", "ratio_low", "ratio_high", "crossed",
            "crossed_share", "count")  # fmt: skip

#: What stores have in common when their ratios are averaged, in this order.
_GROUPS = ("model", "size", "corpus")


def depth_table(results: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """One row per store and rule: depth, ratio, intervals, whether it crossed, documents.

    Parameters
    ----------
    results
        Results of ``depth`` by the name of their store.
    """
    rows: list[dict[str, Any]] = []
    for label, result in results.items():
        for measure in result["measure"].values:
            at = result.sel(measure=measure)
            row = {"store": label, **_facts(result), "rule": str(measure),
                   "tokens": str(result.attrs["parameters"]["token_set"])}  # fmt: skip
            rows.append(row | {name: at[name].values.item() for name in _COLUMNS})
    return pd.DataFrame(rows)


def ratio_table(results: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """One row per store, a column of ratios per rule, then means of stores that are alike.

    A ratio is (depth + 1) / layers, with its interval in brackets, or says why there is none.
    Means are over the stores of one model, one size or one corpus whose curve crosses.
    """
    long = depth_table(results)
    rules = list(dict.fromkeys(long["rule"]))
    rows: list[dict[str, Any]] = []
    for label, mine in long.groupby("store", sort=False):
        facts = {name: mine.iloc[0][name] for name in ("model", "size", "corpus", "layers")}
        told = {one["rule"]: _told(one) for one in mine.to_dict("records")}
        rows.append({"store": label, **facts, **told})
    averaged: list[set[str]] = []
    for by in _GROUPS:
        for value, mine in long.groupby(by, sort=False):
            stores = set(mine["store"])
            if len(stores) < 2 or stores in averaged:
                continue
            averaged.append(stores)
            means = {rule: _mean(mine[mine["rule"] == rule]) for rule in rules}
            facts = {name: value if name == by else "" for name in (*_GROUPS, "layers")}
            rows.append({"store": f"mean of {len(stores)}", **facts, **means})
    return pd.DataFrame(rows)


def _facts(result: xr.Dataset) -> dict[str, Any]:
    known = result.attrs
    size = known.get("model_parameters")
    return {
        "model": known.get("model", ""),
        "size": "" if not size else _short(float(size)),
        "corpus": known.get("corpus", ""),
        "layers": result.sizes["layer"],
    }


def _short(size: float) -> str:
    """A number of parameters as it is spoken of, such as 135M."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if size >= unit:
            return f"{size / unit:.3g}{letter}"
    return f"{size:.0f}"


def _told(row: Mapping[Any, Any]) -> str:
    if not row["count"]:
        return "not measured"
    if not row["crossed"]:
        share = row["crossed_share"]
        also = f", but in {share:.0%} of resamples" if share and np.isfinite(share) else ""
        return f"no crossing{also}"
    told = f"{row['ratio']:.2f}"
    if np.isfinite([row["ratio_low"], row["ratio_high"]]).all():
        told += f" [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
    if row["crossed_share"] < 1:
        told += f" in {row['crossed_share']:.0%} of resamples"
    return told


def _mean(rows: pd.DataFrame) -> str:
    ratios = rows["ratio"].to_numpy(dtype=np.float64)
    crossed = int(np.isfinite(ratios).sum())
    if not crossed:
        return "no crossing"
    of = "" if crossed == len(ratios) else f" of {crossed}"
    return f"{np.nanmean(ratios):.2f}{of}"
