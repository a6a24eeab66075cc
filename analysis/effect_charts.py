"""Charts of interventions: interaction matrices and output effects, one store or several."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from .charts import PART_NAMES, PART_STYLES, Chart, Curve, Floats, Matrix, Panel, floats
from .effect_findings import scope_sample
from .result_charts import interval_name

ACTIONS = {
    "skip": "left out",
    "zero": "set to zero",
    "mean": "replaced by their mean",
    "patch": "replaced by another run's values",
    "scale": "scaled",
    "swap": "applied in swapped order with the next",
    "repeat": "applied twice",
    "reverse": "applied in reversed order within their span",
    "parallel": "applied in parallel with their span",
}
SCOPES = {
    "future": ("future positions", "before a split, measured from it on"),
    "all": ("all positions", "and measured at all positions but the first"),
}

_INTERACTIONS = (
    "A layer (the source, one row of the map) is changed, and what every later layer (the target, "
    "one column) adds to the stream is compared with what it adds otherwise: ‖c − c′‖ / ‖c‖. At 0 "
    "the target does not depend on the source, at 1 the difference is as large as what it adds. "
    "Only the strict upper triangle is shown, since no layer affects itself or an earlier one. A "
    "bright block says that layers build on each other, a dark row that a layer's work is not "
    "taken up by any later one."
)
_LOCAL = (
    " Here only the source's direct contribution is taken from the target's input; nothing is "
    "passed on through the layers in between."
)
_OUTPUTS = (
    "How far the model's next-token distributions move when one layer is changed: the L2 distance "
    "of the probabilities and the KL divergence, averaged over positions, splits and documents. "
    "Whiskers are bootstrap intervals over documents."
)

#: Variables of the matrices: file stem, words, where their interval and count are.
_STATISTICS = {
    "effect_mean": "Mean over documents",
    "effect_max": "Largest of all positions",
}
_VALUE = "Relative change ‖c − c′‖ / ‖c‖"


def interaction_charts(result: xr.Dataset, model: str) -> tuple[Chart, ...]:
    """A chart per scope and kind: mean and largest effects, a matrix per part."""
    charts = []
    for scope, (where, how) in SCOPES.items():
        for kind in ("propagated", "local"):
            if scope not in result["scope"] or kind not in result["kind"]:
                continue
            chosen = result.sel(scope=scope, kind=kind)
            if not np.isfinite(_later(chosen["effect_mean"])).any():
                continue
            panels = tuple(
                panel
                for variable in _STATISTICS
                for panel in _matrices(chosen, variable, _parts(result))
            )
            local = kind == "local"
            charts.append(
                Chart(
                    f"interactions_{scope}_{kind}",
                    f"Interactions, {where}{', local' if local else ''}",
                    f"Which layers build on which: {'local ' if local else ''}effects on {where}",
                    _subtitle(result, model, scope, how),
                    _INTERACTIONS + (_LOCAL if local else ""),
                    panels,
                    across=max(2, len(_parts(result))),
                )
            )
    return tuple(charts)


def output_charts(result: xr.Dataset, model: str) -> tuple[Chart, ...]:
    """A chart per scope: output effects of every source, a bar panel per part and measure."""
    charts = []
    for scope, (where, how) in SCOPES.items():
        if scope not in result["scope"] or "propagated" not in result["kind"]:
            continue
        chosen = result.sel(scope=scope, kind="propagated")
        panels = tuple(
            _bars(chosen.sel(part=part), measure, part)
            for measure in ("output_l2", "output_kl")
            for part in _parts(result)
            if np.isfinite(chosen[f"{measure}_mean"].sel(part=part)).any()
        )
        if panels:
            charts.append(
                Chart(
                    f"output_effects_{scope}",
                    f"Output effects, {where}",
                    f"How much each layer matters to the prediction at {where}",
                    _subtitle(result, model, scope, how),
                    _OUTPUTS,
                    panels,
                    across=max(2, len(panels) // 2),
                )
            )
    return tuple(charts)


def compared_interactions(results: Mapping[str, xr.Dataset]) -> tuple[Chart, ...]:
    """The matrices of several stores side by side on one scale; none where they share no scope."""
    charts = []
    for scope, (where, how) in SCOPES.items():
        chosen = {
            label: result.sel(scope=scope, kind="propagated", part="layer")
            for label, result in results.items()
            if scope in result["scope"]
            and "propagated" in result["kind"]
            and "layer" in result["part"]
        }
        if len(chosen) < 2:
            continue
        limits = _limits(*(_later(one["effect_mean"]) for one in chosen.values()))
        panels = tuple(
            _matrix(one, "effect_mean", f"{label}\n{scope_sample(results[label], scope)}", limits)
            for label, one in chosen.items()
        )
        charts.append(
            Chart(
                f"compared_interactions_{scope}",
                f"Interactions, {where}",
                f"Which layers build on which, side by side: effects on {where}",
                f"Whole layers, means over documents, one colour scale. "
                f"{'; '.join(f'{k}: {_action(results[k], how)}' for k in chosen)}.",
                _INTERACTIONS,
                panels,
                across=min(len(panels), 3),
            )
        )
    return tuple(charts)


def _matrices(chosen: xr.Dataset, variable: str, parts: list[str]) -> list[Matrix]:
    limits = _limits(*(_later(chosen[variable].sel(part=part)) for part in parts))
    return [
        _matrix(
            chosen.sel(part=part), variable, f"{PART_NAMES[part]}\n{_STATISTICS[variable]}", limits
        )
        for part in parts
    ]


def _matrix(chosen: xr.Dataset, variable: str, title: str, limits: tuple[float, float]) -> Matrix:
    details: list[tuple[str, Floats]] = []
    if variable == "effect_mean":
        level = interval_name(chosen)
        details += [
            (f"{level} from", floats(chosen["effect_low"])),
            (f"{level} to", floats(chosen["effect_high"])),
        ]
    details.append(("documents", floats(chosen["count"])))
    return Matrix(
        title,
        "Target layer (measured)",
        "Source layer (changed)",
        _VALUE,
        floats(chosen["target"]),
        floats(chosen["source"]),
        _later(chosen[variable]),
        limits,
        tuple(details),
    )


def _bars(chosen: xr.Dataset, measure: str, part: str) -> Panel:
    kl = measure == "output_kl"
    curve = Curve(
        PART_NAMES[part],
        floats(chosen["source"]),
        floats(chosen[f"{measure}_mean"]),
        PART_STYLES[part],
        floats(chosen[f"{measure}_low"]),
        floats(chosen[f"{measure}_high"]),
        None if kl else floats(chosen["output_l2_max"]),
    )
    return Panel(
        PART_NAMES[part],
        "Changed layer",
        "KL divergence (nats)" if kl else "L2 distance of probabilities",
        (curve,),
        form="bars",
    )


def _subtitle(result: xr.Dataset, model: str, scope: str, how: str) -> str:
    floor = float(result["noise_floor"].max())
    noise = f" Noise floor (a no-op run as a branch): {floor:.2g}." if np.isfinite(floor) else ""
    partial = result.attrs.get("effects_tasks", "")
    unfinished = "" if len(set(partial.split(" of "))) < 2 else f" Unfinished: {partial} tasks."
    return (
        f"{model}, {result.sizes['source']} layers; {_action(result, how)}. "
        f"{scope_sample(result, scope)}.{noise}{unfinished}"
    )


def _action(result: xr.Dataset, how: str) -> str:
    """Such as ``sources left out before a split, measured from it on (effects skip)``."""
    what = ACTIONS.get(str(result.attrs.get("request", {}).get("what", "")), "changed")
    return f"sources {what} {how} (effects {result.attrs['parameters']['effects']})"


def _parts(result: xr.Dataset) -> list[str]:
    return [part for part in ("layer", "attention", "mlp") if part in result["part"]]


def _later(matrix: xr.DataArray) -> Floats:
    """Values whose target is later than their source; NaN elsewhere."""
    return floats(matrix.where(matrix["target"] > matrix["source"]))


def _limits(*matrices: Floats) -> tuple[float, float]:
    """From 0 to what all but one in a hundred shown values stay below."""
    shown = np.concatenate([matrix[np.isfinite(matrix)] for matrix in matrices])
    high = float(np.percentile(shown, 99)) if shown.size else 1.0
    return 0.0, high if high > 0 else 1.0
