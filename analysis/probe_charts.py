"""Chart and sentences of probes."""

from __future__ import annotations

import numpy as np
import xarray as xr

from .charts import STORE_STYLES, Chart, Curve, Panel, curve_of
from .result_charts import interval_name

_EXPLANATION = (
    "How well a linear probe reads the label off the stream at every point, on documents that it "
    "was not trained on. The dashed curve is the same probe on random labels: what it reaches "
    "there it has learned by heart, so only the distance of the curves, the selectivity, speaks "
    "for the stream. The grey line is the share of the commonest class, which takes no stream at "
    "all. Where the curve jumps the model writes the concept, where it stays level it is done."
)

#: Classes that are drawn, the most frequent ones.
MOST = 6


def probe_charts(result: xr.Dataset, model: str) -> tuple[Chart, Chart]:
    """Accuracy and control accuracy over points; and the accuracy of each class."""
    pooled, field = result.isel(label=0), result.attrs["label"]
    commonest = float(result["share_of_class"][1:].max())
    subtitle = (
        f"{model}, {result.attrs['layers']} layers. {int(result.attrs['documents']):,} documents; "
        f"{result.attrs['units']}. Bands: {interval_name(result)} over documents."
    )
    whole = Chart(
        "probes",
        f"Probes of {field}",
        f"From which point on {field} can be read off the stream",
        f"{subtitle} Grey line: share of the commonest class, {commonest:.2f}.",
        _EXPLANATION,
        (
            _panel(
                f"All classes ({int(pooled['count']):,} units)",
                (
                    curve_of(pooled, "accuracy", "", "Accuracy", STORE_STYLES[0]),
                    curve_of(
                        pooled, "control_accuracy", "control_", "Control task", STORE_STYLES[1]
                    ),
                ),
                commonest,
            ),
        ),
    )
    order = 1 + np.argsort(-result["count"].values[1:], kind="stable")[:MOST]
    curves = tuple(
        curve_of(result.isel(label=int(at)), "accuracy", "", _class(result, int(at)), style)
        for at, style in zip(order, STORE_STYLES, strict=False)
    )
    title = "Every class" if len(order) == len(result["label"]) - 1 else f"The {MOST} commonest"
    by_class = Chart(
        "probes_by_class",
        f"Probes of {field} by class",
        f"Which values of {field} are read early, and which late",
        subtitle,
        _EXPLANATION,
        (_panel(title, curves, None),),
    )
    return whole, by_class


def _class(result: xr.Dataset, at: int) -> str:
    return f"{result['label'].values[at]} ({int(result['count'][at]):,} units)"


def _panel(title: str, curves: tuple[Curve, ...], reference: float | None) -> Panel:
    return Panel(title, "Point of the residual stream", "Accuracy", curves, (0.0, 1.03),
                 reference=reference)  # fmt: skip


def probe_findings(result: xr.Dataset) -> list[str]:
    """Where the label is read best, where its accuracy jumps, and from where it stays."""
    pooled, field = result.isel(label=0), result.attrs["label"]
    accuracy, points = pooled["accuracy"].values, result["point"].values
    documents = int(result.attrs["documents"])
    if not np.isfinite(accuracy).any():
        return [f"{field} could not be probed: no document has both a label and stored rows."]
    best = int(np.nanargmax(accuracy))
    at = pooled.isel(point=best)
    low, high, control = (float(at[name]) for name in ("low", "high", "control_accuracy"))
    opening = (
        f"A linear probe reads {field} best at point {points[best]} of {points[-1]}: accuracy "
        f"{accuracy[best]:.2f} [{low:.2f}, {high:.2f}], {control:.2f} on random labels, "
        f"{float(result['share_of_class'][1:].max()):.2f} by the commonest class"
    )
    return [
        f"{opening}; {_place(pooled, 'jump_point', 'it jumps at', 'it never jumps')}, "
        f"{_place(pooled, 'convergence_point', 'stays level from', 'does not settle')} "
        f"({documents:,} documents; {interval_name(result)}s in brackets)."
    ]


def _place(pooled: xr.Dataset, name: str, found: str, none: str) -> str:
    value = float(pooled[name])
    if not np.isfinite(value):
        return none
    low, high = (float(pooled[f"{name}_{end}"]) for end in ("low", "high"))
    return f"{found} point {value:.0f} [{low:.0f}, {high:.0f}]"
