"""Charts of the result datasets: contributions, cosines and the lens, one store or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from .charts import (
    PART_NAMES,
    PART_STYLES,
    STORE_STYLES,
    TOKEN_SET_STYLES,
    Chart,
    Curve,
    Floats,
    Panel,
    Style,
    floats,
)

TOKEN_SETS = {
    "content": "Content tokens (without first position and special tokens)",
    "all": "All tokens (with the first position)",
}


_NORM_RATIO = (
    "A layer reads the residual stream and adds to it. The curves show how large each addition is "
    "beside what it is added to: ‖a‖/‖h‖ for attention, ‖m‖/‖h+a‖ for the MLP, ‖a+m‖/‖h‖ for the "
    "whole layer. At 0.1 the stream changes by a tenth of its length. A lasting drop in the later "
    "layers means that they only adjust what the earlier ones have built."
)
_COSINE = (
    "The cosine between what a part adds and the stream it adds to: cos(a, h), cos(m, h+a) and "
    "cos(a+m, h). Above zero the part strengthens directions that are already there, below zero "
    "it weakens or erases them, near zero it writes new ones. The last change from negative to "
    "positive is often where a model turns from building features to sharpening its answer."
)
_LENS = (
    "The logit lens applies the model's own final norm and unembedding to the stream at every "
    "point, as if the model ended there; point l is the stream that enters layer l, the last "
    "point, L, the one that leaves the last layer. The divergence KL(p_l ‖ p_L) says how far "
    "that prediction is from the final one, overlap and agreement how many of its best guesses "
    "are already the final ones. Curves that settle early mean that the remaining layers do not "
    "change the prediction."
)

#: Lens variables: panel title, axis label, fixed range.
LENS_PANELS: Mapping[str, tuple[str, str, tuple[float, float] | None]] = {
    "kl": ("Distance to the final prediction", "KL divergence (nats)", None),
    "entropy": ("Uncertainty of the prediction", "Entropy (nats)", None),
    "top5_overlap": ("Top-5 overlap", "Share of the final five", (0.0, 1.03)),
    "top1_agreement": ("Top-1 agreement", "Share of tokens", (0.0, 1.03)),
}


def contribution_charts(result: xr.Dataset, model: str) -> tuple[Chart, Chart]:
    """Norm ratios and cosines over layers, a panel per token set, a curve per part."""
    ratios = [_contribution_panel(result, name, "norm_ratio") for name in _token_sets(result)]
    cosines = [_contribution_panel(result, name, "cosine") for name in _token_sets(result)]
    subtitle = f"{model}, {len(result.layer)} layers. {_bands(result)}"
    size = Chart(
        "contributions",
        "Size of the contributions",
        "How much each layer adds to the residual stream",
        subtitle,
        _NORM_RATIO,
        tuple(ratios),
        same_y=True,
    )
    direction = Chart(
        "cosines",
        "Direction of the contributions",
        "Whether each layer strengthens or erases the stream",
        subtitle,
        _COSINE,
        tuple(cosines),
        same_y=True,
    )
    return size, direction


def lens_chart(result: xr.Dataset, model: str) -> Chart:
    """The logit lens over points: a panel per measure, a curve per token set."""
    names = list(_token_sets(result))
    panels = []
    for measure, (title, y_label, y_range) in LENS_PANELS.items():
        curves = tuple(
            _curve(result.sel(token_set=name), measure, f"{name} tokens", TOKEN_SET_STYLES[name])
            for name in names
        )
        panels.append(Panel(title, "Point of the residual stream", y_label, curves, y_range))
    samples = "; ".join(f"{name}: {sample_size(result, name)}" for name in names)
    subtitle = f"{model}, {int(result.point[-1])} layers. {samples}. {_bands(result)}"
    return Chart(
        "lens",
        "The logit lens",
        "When the prediction takes its final shape",
        subtitle,
        _LENS,
        tuple(panels),
    )


def comparison_charts(
    contributions: Mapping[str, xr.Dataset],
    lenses: Mapping[str, xr.Dataset],
    token_set: str = "content",
) -> tuple[Chart, ...]:
    """Several stores over relative depth (layer or point number / number of layers)."""
    charts = []
    for variable, heading, title, explanation in (
        (
            "norm_ratio",
            "Size of the contributions",
            "How much the layers add, side by side",
            _NORM_RATIO,
        ),
        (
            "cosine",
            "Direction of the contributions",
            "Whether the layers strengthen or erase, side by side",
            _COSINE,
        ),
    ):
        if len(contributions) > 1:
            panels = tuple(_compared_parts(contributions, variable, token_set))
            subtitle = _compared_samples(contributions, token_set)
            charts.append(
                Chart(f"compared_{variable}", heading, title, subtitle, explanation, panels, True)
            )
    if len(lenses) > 1:
        panels = tuple(_compared_lenses(lenses, token_set))
        subtitle = _compared_samples(lenses, token_set)
        charts.append(
            Chart(
                "compared_lens",
                "The logit lens",
                "When the predictions settle, side by side",
                subtitle,
                _LENS,
                panels,
            )
        )
    return tuple(charts)


def sample_size(result: xr.Dataset, token_set: str) -> str:
    """Such as ``14,203 tokens of 240 documents``; without documents where they are unknown."""
    tokens = int(result["count"].sel(token_set=token_set))
    documents = result.attrs.get("documents", {}).get(token_set)
    sample = _number(tokens, "token")
    return sample if documents is None else f"{sample} of {_number(documents, 'document')}"


def interval_name(result: xr.Dataset) -> str:
    """Such as ``95% interval``, by the level with which the result was made."""
    return f"{100 * result.attrs.get('parameters', {}).get('level', 0.95):.3g}% interval"


def _bands(result: xr.Dataset) -> str:
    return f"Bands: {interval_name(result).replace(' ', ' bootstrap ')} over documents."


def _number(value: int, noun: str) -> str:
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def _contribution_panel(result: xr.Dataset, token_set: str, variable: str) -> Panel:
    chosen = result.sel(token_set=token_set)
    curves = tuple(
        _curve(chosen.sel(part=part), variable, PART_NAMES[part], PART_STYLES[part])
        for part in PART_STYLES
    )
    ratio = variable == "norm_ratio"
    return Panel(
        f"{TOKEN_SETS[token_set]}\n{sample_size(result, token_set)}",
        "Layer",
        "Norm ratio (mean over tokens)" if ratio else "Cosine (mean over tokens)",
        curves,
        None,
        ratio and _wide(result["norm_ratio_mean"].values),
        None if ratio else 0.0,
    )


def _compared_parts(
    results: Mapping[str, xr.Dataset], variable: str, token_set: str
) -> list[Panel]:
    ratio = variable == "norm_ratio"
    drawn = {
        part: tuple(
            _curve(
                result.sel(token_set=token_set, part=part), variable, label, style, relative=True
            )
            for (label, result), style in _styled(results)
        )
        for part in ("layer", "attention", "mlp")
    }
    wide = ratio and _wide(*(curve.mean for curves in drawn.values() for curve in curves))
    return [
        Panel(
            PART_NAMES[part],
            "Relative depth (layer / layers)",
            "Norm ratio (mean)" if ratio else "Cosine (mean)",
            curves,
            None,
            wide,
            None if ratio else 0.0,
        )
        for part, curves in drawn.items()
    ]


def _compared_lenses(results: Mapping[str, xr.Dataset], token_set: str) -> list[Panel]:
    return [
        Panel(
            title,
            "Relative depth (point / layers)",
            y_label,
            tuple(
                _curve(result.sel(token_set=token_set), measure, label, style, relative=True)
                for (label, result), style in _styled(results)
            ),
            y_range,
        )
        for measure, (title, y_label, y_range) in LENS_PANELS.items()
    ]


def _compared_samples(results: Mapping[str, xr.Dataset], token_set: str) -> str:
    samples = "; ".join(f"{label}: {sample_size(r, token_set)}" for label, r in results.items())
    bands = _bands(next(iter(results.values())))
    return f"{token_set.capitalize()} tokens. {samples}. {bands}"


def _styled(results: Mapping[str, xr.Dataset]) -> list[tuple[tuple[str, xr.Dataset], Style]]:
    return [
        (item, STORE_STYLES[number % len(STORE_STYLES)])
        for number, item in enumerate(results.items())
    ]


def _curve(
    data: xr.Dataset, variable: str, label: str, style: Style, relative: bool = False
) -> Curve:
    axis = "layer" if "layer" in data.dims else "point"
    x = floats(data[axis])
    if relative:
        # Point L stands at 1, so layer l and the point it reads have the same place.
        layers = len(x) if axis == "layer" else x[-1]
        x = x / max(layers, 1)
    found = {
        key: floats(data[f"{variable}_{key}"])
        for key in ("mean", "low", "high", "max")
        if f"{variable}_{key}" in data
    }
    return Curve(label, x, found["mean"], style, found.get("low"), found.get("high"),
                 found.get("max"))  # fmt: skip


def _token_sets(result: xr.Dataset) -> Sequence[str]:
    return [name for name in TOKEN_SETS if name in result.token_set.values]


def _wide(*values: Floats) -> bool:
    """Whether values span so much that a linear axis would hide most of them."""
    joined = np.concatenate([array[np.isfinite(array)] for array in values])
    return len(joined) > 0 and joined.min() > 0 and bool(joined.max() / joined.min() > 15)
