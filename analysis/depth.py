"""The effective depth: how many layers a model takes until its stream changes character.

Three rules (``depth_rules``) read it off the mean cosine curves and the logit lens. Documents are
resampled, every resample gives curves and so a depth of its own: that distribution is the depth's
uncertainty, and tells how often a rule finds nothing. ratio = (depth + 1) / L.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Any, Literal

import numpy as np
import xarray as xr
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

from .contributions import Source, contributions
from .depth_curves import Curve, kept_documents, read_curve
from .depth_rules import KL_SHARE, OVERLAP_LEAST, cosine_depth, kl_depth, overlap_depth
from .lens import lens
from .results import Provenance, result_folder, result_place, reuse_result, save_dataset
from .store import Run
from .summary import Settings

Floats = NDArray[np.float64]
TokenSet = Literal["content", "all"]
#: Makes depths (…,) of curves (…, layers).
Rule = Callable[[Floats], Floats]

MEASURES = ("cosine", "kl", "overlap")

#: Which analysis has the curves of which measures.
SOURCES = (
    (contributions, "contributions", {"cosine": "cosine"}),
    (lens, "lens", {"kl": "kl", "overlap": "top5_overlap"}),
)

_MEANINGS = {
    "effective_depth": ("layer at which the rule's curve crosses", "layer"),
    "ratio": ("share of the layers up to the effective depth, (depth + 1) / layers", "1"),
    "low": ("low end of the effective depth's bootstrap interval over documents", "layer"),
    "high": ("high end of the effective depth's bootstrap interval over documents", "layer"),
    "ratio_low": ("low end of the ratio's bootstrap interval over documents", "1"),
    "ratio_high": ("high end of the ratio's bootstrap interval over documents", "1"),
    "crossed": ("whether the curve crosses at all", "1"),
    "crossed_share": ("share of resamples in which the curve crosses", "1"),
    "share": ("share of resamples whose effective depth is this layer", "1"),
    "count": ("documents behind the curve", "document"),
}


def depth(
    run: Run,
    source: Source = "statistics",
    *,
    tokens: TokenSet = "content",
    kl_share: float = KL_SHARE,
    overlap_least: float = OVERLAP_LEAST,
    **settings: Any,
) -> xr.Dataset:
    """The effective depth by three rules, with the distribution over resampled documents.

    Parameters
    ----------
    run
        From ``open``; a selection by ``where`` is respected.
    source
        As for ``contributions`` and ``lens``, on which the rules stand.
    tokens
        ``content`` leaves first positions and special tokens out, ``all`` takes every token, as
        the paper does.
    kl_share
        The rule ``kl`` looks for a divergence below this share of the largest.
    overlap_least
        The rule ``overlap`` looks for a top-5 overlap above this.
    settings
        Fields of ``Settings``: resamples, seed, level, out, scheduler, workers, progress.

    Returns
    -------
    xarray.Dataset
        Axis measure (cosine, kl, overlap): effective_depth, ratio, low, high, ratio_low,
        ratio_high (NaN where nothing crosses), crossed, crossed_share, count; share (measure,
        layer). low and high are of the resamples that cross. A measure that the store lacks has
        count 0.

    Raises
    ------
    RequestError
        The store has neither cosines nor lens values, or a parameter is out of range.
    """
    chosen = Settings(**settings)
    _check(tokens, kl_share, overlap_least)
    measured = _measured(run, source)
    rules: dict[str, Rule] = {
        "cosine": cosine_depth,
        "kl": partial(kl_depth, share=kl_share),
        "overlap": partial(overlap_depth, least=overlap_least),
    }
    parameters = {
        "source": source,
        "token_set": tokens,
        "kl_share": kl_share,
        "overlap_least": overlap_least,
        "resamples": chosen.resamples,
        "seed": chosen.seed,
        "level": chosen.level,
    }
    provenance = Provenance.of(run, "depth", parameters)
    place = result_place(run, "depth", chosen.out)
    found = reuse_result(place, provenance)
    if found is not None:
        return found
    depths = {}
    for analysis, name, variables in SOURCES:
        if not measured[name]:
            continue
        result_name = name if source == "statistics" else f"{name}_{source}"
        with kept_documents(run, analysis, result_name, source, chosen) as kept:
            for measure, variable in variables.items():
                curve = read_curve(kept, variable, tokens, chosen)
                depths[measure] = _Depth.of(curve, rules[measure], run.layers)
    result = _dataset(depths, run.layers, chosen.level).assign_attrs(provenance.attributes())
    result = result.assign_coords(token_set=tokens).assign_attrs(_names(run))
    with result_folder(place) as folder:
        save_dataset(result, folder)
    return result


def _names(run: Run) -> dict[str, Any]:
    """What tables over several stores tell them apart by."""
    records = [snapshot.record for snapshot in run.snapshots]
    sources = [
        PurePath(str(source.get("path", ""))).stem
        for record in records
        for source in record.corpus.get("sources", ())
    ]
    return {
        "model": str(records[0].model.get("name", "")),
        "model_parameters": int(records[0].model.get("parameters") or 0),
        "corpus": "+".join(dict.fromkeys(sources)),
    }


def _check(tokens: str, kl_share: float, overlap_least: float) -> None:
    if tokens not in ("content", "all"):
        raise RequestError(f"unknown token set {tokens!r}; use content or all")
    for name, value in (("kl_share", kl_share), ("overlap_least", overlap_least)):
        if not 0 < value < 1:
            raise RequestError(f"{name} must lie between 0 and 1, not be {value}")


def _measured(run: Run, source: Source) -> dict[str, bool]:
    """Whether the store has what contributions and lens are made from."""
    of_statistics = source == "statistics"
    needed = {
        "contributions": "cosine" if of_statistics else "mlp_output",
        "lens": "kl" if of_statistics else "residual",
    }
    measured = {key: run.has(name) for key, name in needed.items()}
    if not any(measured.values()):
        raise RequestError(
            f"{run.snapshots[0].root} has neither {' nor '.join(needed.values())}, from which "
            "effective depth is read: extract with statistics or with --lens-rows"
        )
    return measured


@dataclass(frozen=True, eq=False)
class _Depth:
    """A depth and its distribution over resamples; NaN where the curve does not cross."""

    depth: float
    resampled: Floats
    documents: int

    @classmethod
    def of(cls, curve: Curve, rule: Rule, layers: int) -> _Depth:
        # Point L is the final prediction itself, which every lens curve reaches.
        inside = curve.at < layers
        at = np.append(curve.at[inside], 0).astype(np.float64)

        def layer(found: Floats) -> Floats:
            places = np.where(np.isnan(found), -1, found).astype(np.int64)
            return np.where(np.isnan(found), np.nan, at[places])

        if not inside.any() or not curve.documents:
            return cls(np.nan, np.empty(0), curve.documents)
        depth = layer(rule(curve.mean[..., inside]))
        return cls(float(depth), layer(rule(curve.resampled[..., inside])), curve.documents)


def _dataset(depths: Mapping[str, _Depth], layers: int, level: float) -> xr.Dataset:
    nothing = _Depth(np.nan, np.empty(0), 0)
    rows: dict[str, list[Any]] = {name: [] for name in _MEANINGS}
    for measure in MEASURES:
        one = depths.get(measure, nothing)
        inside = one.resampled[np.isfinite(one.resampled)]
        crossed = bool(np.isfinite(one.depth))
        tail = 50 * (1 - level)
        # Whole layers, outwards, since no layer lies between two.
        low = np.percentile(inside, tail, method="lower") if crossed and len(inside) else np.nan
        high = (
            np.percentile(inside, 100 - tail, method="higher")
            if crossed and len(inside)
            else np.nan
        )
        total = len(one.resampled)
        rows["effective_depth"].append(one.depth)
        rows["ratio"].append((one.depth + 1) / layers)
        rows["low"].append(low)
        rows["high"].append(high)
        rows["ratio_low"].append((low + 1) / layers)
        rows["ratio_high"].append((high + 1) / layers)
        rows["crossed"].append(crossed)
        rows["crossed_share"].append(len(inside) / total if total else np.nan)
        times = np.bincount(inside.astype(np.int64), minlength=layers)
        rows["share"].append(times / total if total else np.full(layers, np.nan))
        rows["count"].append(one.documents)
    variables = {
        name: (
            ("measure", "layer") if name == "share" else ("measure",),
            np.array(values),
            {"long_name": _MEANINGS[name][0], "units": _MEANINGS[name][1]},
        )
        for name, values in rows.items()
    }
    return xr.Dataset(variables, {"measure": list(MEASURES), "layer": np.arange(layers)})
