"""Sentences about how a model uses its depth: flips, onsets, and what a tuned lens finds."""

from __future__ import annotations

import numpy as np
import xarray as xr

from .charts import Floats
from .frequencies import BUCKETS
from .row_classes import ANY

#: How a sentence names a class.
_CLASSES = {
    "bucket": "a target of frequency rank {}",
    "pos": "a token before a word of class {}",
    "fact": "token {} of the answer",
    "options": "option {}",
}


def flip_findings(result: xr.Dataset) -> list[str]:
    """What the earliest point guesses, and how often it is overturned."""
    chosen, name = _chosen(result, "rows")
    if not int(chosen["rows"]) or len(chosen["point"]) < 2:
        return ["No row has best guesses at two points."]
    first = chosen.isel(point=0)
    point = int(first["point"])
    common, every = first.sel(bucket=BUCKETS[0]), first.sel(bucket=ANY)
    last = float(chosen["share"].sel(bucket=BUCKETS[0]).isel(point=-1))
    found = [
        f"Over {name} tokens ({int(chosen['rows']):,} rows), {float(common['share']):.0%} of the "
        f"best guesses at point {point} are among the ten commonest tokens, and {last:.0%} of the "
        "final ones."
    ]
    sentence = f"{_rate(every)} of all best guesses at point {point} are overturned later"
    if int(common["count"]):
        sentence += f", and {_rate(common)} of those that are among the ten commonest tokens"
    return [*found, f"{sentence}."]


def onset_findings(result: xr.Dataset) -> list[str]:
    """Which class reaches the smallest rank first and last, for good."""
    chosen, name = _chosen(result, "rows")
    by, rows = result.attrs["parameters"]["by"], int(chosen["rows"])
    over = f"{rows:,} questions" if by == "options" else f"{rows:,} {name} tokens"
    chosen = chosen.sel(outcome="all", criterion="stays").isel(rank=0)
    chosen = chosen.isel({"class": slice(-1)})  # the last is all classes together
    depths = np.asarray(chosen["depth_mean"].values, dtype=np.float64)
    rank = int(chosen["rank"])
    if not np.isfinite(depths).any():
        return [f"Over {over}, no class ever reaches rank {rank}."]
    early, late = int(np.nanargmin(depths)), int(np.nanargmax(depths))
    words = [_CLASSES[by].format(label) for label in chosen["class"].values]
    sentence = (
        f"Over {over}, {words[early]} reaches rank {rank} for good at point "
        f"{_depth(chosen, depths, early)}"
    )
    if early != late:
        sentence += f", {words[late]} at point {_depth(chosen, depths, late)}"
    return [f"{sentence}; interval of the mean in brackets."]


def tuned_lens_findings(result: xr.Dataset) -> list[str]:
    """How much of the logit lens's distance to the final prediction is only its wording."""
    chosen, name = _chosen(result, "count")
    rows, points = int(chosen["count"]), chosen["point"].values
    if not rows or len(points) < 2:
        return ["No held-out row has lens values at two points."]
    at = chosen.isel(point=(len(points) - 1) // 2)
    said = []
    for prefix in ("logit_", ""):
        mean, low, high = (float(at[f"{prefix}kl_{end}"]) for end in ("mean", "low", "high"))
        said.append(f"{mean:.2f}{_ends(low, high, '.2f')}")
    documents = result.attrs["documents"][name]
    return [
        f"Over {rows:,} {name} tokens of {documents:,} held-out document"
        f"{'' if documents == 1 else 's'}, the KL divergence to "
        f"the final prediction at point {int(at['point'])} of {points[-1]} is {said[0]} nats for "
        f"the logit lens and {said[1]} for the tuned lens."
    ]


def _chosen(result: xr.Dataset, rows: str) -> tuple[xr.Dataset, str]:
    """Content tokens, or all where there are none."""
    name = "content" if int(result[rows].sel(token_set="content")) else "all"
    return result.sel(token_set=name), name


def _rate(at: xr.Dataset) -> str:
    return f"{float(at['rate']):.0%}{_ends(float(at['low']), float(at['high']), '.0%')}"


def _depth(chosen: xr.Dataset, depths: Floats, at: int) -> str:
    low, high = (float(chosen[end].values[at]) for end in ("low", "high"))
    count = int(chosen["count"].values[at])
    return f"{depths[at]:.1f}{_ends(low, high, '.1f')} ({count:,} row{'' if count == 1 else 's'})"


def _ends(low: float, high: float, form: str) -> str:
    """An interval in brackets; nothing where a single document leaves none."""
    return f" [{low:{form}}, {high:{form}}]" if np.isfinite([low, high]).all() else ""
