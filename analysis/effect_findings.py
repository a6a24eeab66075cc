"""Plain sentences about interactions, the depth score and the effective depth, from numbers alone.

Each names its sample and its 95% intervals, and says so where there is nothing to report.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from .result_charts import interval_name

RULES = {
    "cosine": "the cosine with the stream last turns positive",
    "kl": "the divergence to the final prediction falls below {kl_share:g} of its largest",
    "overlap": "the overlap of the best five guesses with the final ones passes {overlap_least:g}",
}


def interaction_findings(result: xr.Dataset) -> list[str]:
    """On which later layers changes show, and whether the later half matters less."""
    sentences = []
    for scope in ("future", "all"):
        if scope in result["scope"] and "propagated" in result["kind"]:
            chosen = result.sel(scope=scope, kind="propagated")
            part = "layer" if "layer" in result["part"] else str(result["part"].values[0])
            sentences.append(_strongest(chosen.sel(part=part), scope, _sample(result, scope)))
            return sentences
    return sentences


def depth_findings(result: xr.Dataset) -> list[str]:
    """Where each rule puts the effective depth; one sentence."""
    layers = result.sizes["layer"]
    told = []
    for measure, text in RULES.items():
        at = result.sel(measure=measure)
        text = text.format(**result.attrs["parameters"])
        if not int(at["count"]):
            told.append(f"{measure} was not measured")
        elif not bool(at["crossed"]):
            told.append(f"no layer at which {text}")
        else:
            told.append(
                f"{text} at layer {float(at['effective_depth']):.0f} "
                f"[{float(at['low']):.0f}, {float(at['high']):.0f}], "
                f"{float(at['ratio']):.2f} of the depth"
            )
    documents = int(result["count"].max())
    return [
        f"Effective depth of {layers} layers, {result.attrs['parameters']['token_set']} tokens of "
        f"{documents:,} documents: {'; '.join(told)} ({interval_name(result)}s in brackets)."
    ]


def depth_score_findings(result: xr.Dataset) -> list[str]:
    """How the score moves with the level; one sentence per measure."""
    field = result.attrs["parameters"]["field"]
    sentences = []
    for measure, what in (("layer", "later layers"), ("output", "predictions")):
        at = result.sel(measure=measure)
        opening = f"The centre of the layers' effect on future {what}"
        if not np.isfinite(at["score"].values).any():
            sentences.append(f"{opening} was not measured.")
            continue
        ends = [int(np.flatnonzero(np.isfinite(at["score"].values))[n]) for n in (0, -1)]
        first, last = (f"{_with_interval(at, n)} at {at['level'].values[n]}" for n in ends)
        moved = f"{opening} is layer {first} and {last} of {field}"
        if not np.isfinite(float(at["trend_p"])):
            sentences.append(f"{moved}; its levels allow no test of a trend.")
            continue
        slope, low, high = (float(at[f"trend_slope{end}"]) for end in ("", "_low", "_high"))
        sentences.append(
            f"{moved}: {slope:+.2f} layers per level [{low:+.2f}, {high:+.2f}] (Kendall's tau "
            f"{float(at['trend_tau']):+.2f}, p = {float(at['trend_p']):.2g}, "
            f"{int(at['trend_count']):,} documents)."
        )
    return sentences


def _strongest(chosen: xr.Dataset, scope: str, sample: str) -> str:
    later = chosen["effect_mean"].where(chosen["target"] > chosen["source"])
    values = later.values
    if not np.isfinite(values).any():
        return f"No layer's change reached a later one in scope {scope} ({sample})."
    source, target = np.unravel_index(int(np.nanargmax(values)), values.shape)
    half = max(len(values) // 2, 1)
    with np.errstate(invalid="ignore"):
        early, late = (float(_mean(part)) for part in (values[:half], values[-half:]))
    where = "at future positions" if scope == "future" else "at all positions"
    return (
        f"Changing a layer of the first half moves what a later one adds {where} by "
        f"{early:.2f} of its norm, one of the second half by {late:.2f}; most of all, layer "
        f"{source} moves layer {target} by {values[source, target]:.2f} "
        f"[{float(chosen['effect_low'].values[source, target]):.2f}, "
        f"{float(chosen['effect_high'].values[source, target]):.2f}] ({sample})."
    )


def _mean(values: Any) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _sample(result: xr.Dataset, scope: str) -> str:
    return f"{scope_sample(result, scope)}; {interval_name(result)}s in brackets"


def scope_sample(result: xr.Dataset, scope: str) -> str:
    """Such as ``10 documents, 38 splits``."""
    documents, splits = (int(result.attrs[key][scope]) for key in ("documents", "splits"))
    text = f"{documents:,} document{'' if documents == 1 else 's'}"
    return text if scope == "all" else f"{text}, {splits:,} split{'' if splits == 1 else 's'}"


def _with_interval(at: xr.Dataset, number: int) -> str:
    score, low, high = (float(at[name].values[number]) for name in ("score", "low", "high"))
    return (
        f"{score:.1f} [{low:.1f}, {high:.1f}]" if np.isfinite([low, high]).all() else f"{score:.1f}"
    )
