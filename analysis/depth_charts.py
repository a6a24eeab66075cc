"""Charts of the depth score by level, and of the effective depth of one store or several."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from .charts import STORE_STYLES, Chart, Curve, Panel, floats
from .result_charts import interval_name

_SCORE = (
    "The depth score is the centre of mass of what layers do: Σ s·e_s / Σ e_s over source layers "
    "s, where e_s is the mean effect of changing layer s on later layers (left) or on the "
    "predictions (right) at future positions. If harder inputs used deeper layers, it would rise "
    "with the level; if all layers had the same effect, it would be (L−2)/2 and (L−1)/2, the grey "
    "lines. Whiskers are bootstrap intervals over documents; the trend is tested over single "
    "documents by Kendall's tau."
)
_DEPTH = (
    "Three rules for the layer at which the model turns from building to refining: the last layer "
    "at which the mean cosine between what is added and the stream turns positive; the first layer "
    "whose input has less than {kl_share:g} of the lens's largest divergence; the first whose "
    "input has a top-5 overlap above {overlap_least:g}. The ratio is (depth + 1) / layers. "
    "Whiskers span the bootstrap distribution over documents. A rule that finds no such layer is "
    "left out, and the table says so."
)
RULES = {"cosine": "Cosine turns positive", "kl": "KL has halved", "overlap": "Overlap passes"}


def depth_score_chart(result: xr.Dataset, model: str) -> Chart:
    """The score against the level: a panel for later layers, one for predictions."""
    parameters = result.attrs["parameters"]
    layers = result.sizes["source"]
    names = {"layer": ("Effects on later layers", layers - 2),
             "output": ("Effects on predictions", layers - 1)}  # fmt: skip
    panels = tuple(
        _score_panel(result.sel(measure=measure), title, str(parameters["field"]), last / 2)
        for measure, (title, last) in names.items()
    )
    documents = int(result["count"].sum("level").max())
    return Chart(
        "depth_score",
        f"Depth score by {parameters['field']}",
        f"Whether harder documents use deeper layers: by {parameters['field']}",
        f"{model}, {layers} layers; effects {parameters['effects']}, part {parameters['part']}. "
        f"{documents:,} documents; whiskers: {interval_name(result)} over documents.",
        _SCORE,
        panels,
    )


def depth_chart(results: Mapping[str, xr.Dataset], name: str = "depth") -> Chart | None:
    """Ratios of effective depth by rule, a colour per store; None where no rule finds anything."""
    first = next(iter(results.values()))
    if not any(bool(result["crossed"].any()) for result in results.values()):
        return None
    curves = tuple(
        Curve(
            f"{label} ({result.sizes['layer']} layers)",
            np.arange(len(RULES), dtype=np.float64),
            floats(result["ratio"]),
            STORE_STYLES[number % len(STORE_STYLES)],
            floats(result["ratio_low"]),
            floats(result["ratio_high"]),
        )
        for number, (label, result) in enumerate(results.items())
    )
    samples = "; ".join(f"{label}: {int(r['count'].max()):,}" for label, r in results.items())
    panel = Panel(
        "Effective depth / layers",
        "Rule",
        "Ratio (depth + 1) / layers",
        curves,
        (0.0, 1.05),
        form="points",
        x_ticks=tuple(RULES.values()),
    )
    return Chart(
        name,
        "Effective depth",
        "At which share of its layers the model turns from building to refining",
        f"{_token_set(first).capitalize()} tokens. Documents: {samples}. Whiskers: "
        f"{interval_name(first)} over documents.",
        _DEPTH.format(**first.attrs["parameters"]),
        (panel,),
    )


def _score_panel(at: xr.Dataset, title: str, field: str, even: float) -> Panel:
    numeric = at["level"].dtype.kind in "iuf"
    labels = [str(level) for level in at["level"].values]
    x = floats(at["level_number"]) if numeric else np.arange(len(labels), dtype=np.float64)
    p = float(at["trend_p"])
    trend = "no test of a trend"
    if np.isfinite(p):
        ends = [float(at[f"trend_slope{end}"]) for end in ("", "_low", "_high")]
        trend = (
            f"τ = {float(at['trend_tau']):+.2f}, p = {p:.2g}; "
            f"{ends[0]:+.2f} layers per level [{ends[1]:+.2f}, {ends[2]:+.2f}]"
        )
    documents = int(at["count"].sum())
    curve = Curve("Score", x, floats(at["score"]), STORE_STYLES[0],
                  floats(at["low"]), floats(at["high"]))  # fmt: skip
    return Panel(
        f"{title} ({documents:,} documents)\n{trend}",
        f"Level ({field})",
        "Depth score (layer)",
        (curve,),
        reference=even,
        form="points",
        x_ticks=None if numeric else tuple(labels),
    )


def _token_set(result: xr.Dataset) -> str:
    return str(result.attrs["parameters"]["token_set"])
