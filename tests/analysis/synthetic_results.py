"""Result datasets and documents made from formulas, shaped as design.md section 5 says."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from depthscope.analysis.token_views import MEASURES, TokenView

SETS = ["all", "content"]
PARTS = ["attention", "mlp", "layer"]


def contributions(ratio: Any, cosine: Any, spread: float = 0.01, model: str = "tiny") -> xr.Dataset:
    """A result whose layer part has these values for content tokens; the rest differs from them."""
    ratio, cosine = np.asarray(ratio, float), np.asarray(cosine, float)
    factor = np.array([[0.5, 0.7, 1.1], [0.45, 0.65, 1.0]])[:, :, None]
    ratios, cosines = factor * ratio, factor * cosine
    dims = ("token_set", "part", "layer")
    return xr.Dataset(
        {
            "norm_ratio_mean": (dims, ratios),
            "norm_ratio_max": (dims, ratios * 9),
            "norm_ratio_low": (dims, ratios - spread),
            "norm_ratio_high": (dims, ratios + spread),
            "cosine_mean": (dims, cosines),
            "cosine_low": (dims, cosines - spread),
            "cosine_high": (dims, cosines + spread),
            "count": ("token_set", [1234, 1200]),
        },
        {"token_set": SETS, "part": PARTS, "layer": np.arange(len(ratio))},
        attributes("contributions", model),
    )


def lens(kl: Any, agreement: Any, model: str = "tiny") -> xr.Dataset:
    """A result with these values for content tokens, and a little more for all."""
    kl, agreement = np.asarray(kl, float), np.asarray(agreement, float)
    both = np.array([1.05, 1.0])[:, None]
    dims = ("token_set", "point")
    return xr.Dataset(
        {
            "kl_mean": (dims, both * kl),
            "kl_low": (dims, both * kl * 0.9),
            "kl_high": (dims, both * kl * 1.1),
            "top5_overlap_mean": (dims, both * agreement * 0.9),
            "top1_agreement_mean": (dims, both * agreement),
            "entropy_mean": (dims, both * kl * 0.3),
            "count": ("token_set", [640, 600]),
        },
        {"token_set": SETS, "point": np.arange(len(kl))},
        attributes("lens", model),
    )


def attributes(name: str, model: str) -> dict[str, Any]:
    return {
        "analysis": name,
        "inputs": [{"model": model}],
        "parameters": {"level": 0.95},
        "documents": {"all": 48, "content": 47},
        "nonfinite_values": 0,
    }


def token_view(
    tokens: list[str], layers: int, title: str = "Document 3", seed: int = 0
) -> TokenView:
    """A document with random values of every measure; next_rank of the last token is missing."""
    random = np.random.default_rng(seed)
    values = {
        name: random.uniform(0.1, 0.9, (layers + (measure.axis == "point"), len(tokens)))
        for name, measure in MEASURES.items()
    }
    values["next_rank"][:, -1] = np.nan
    return TokenView(
        title, tuple(tokens), 70, 0, {name: v.astype(np.float32) for name, v in values.items()}
    )


def interactions(layers: int, model: str = "tiny") -> xr.Dataset:
    """Effects (source + 1) / (target + 1) of whole layers in scope future; 0.1 for the output."""
    source, target = np.meshgrid(np.arange(layers), np.arange(layers), indexing="ij")
    effect = np.where(target >= source, (source + 1) / (target + 1), np.nan)
    axes = ("scope", "kind", "part", "source", "target")
    bars = np.full((1, 1, 1, layers), 0.1)
    matrix = {"max": 2 * effect, "mean": effect, "low": 0.9 * effect, "high": 1.1 * effect}
    outputs = {
        f"{name}_{key}": (axes[:-1], bars * factor)
        for name in ("output_l2", "output_kl")
        for key, factor in (("mean", 1), ("low", 0.8), ("high", 1.2), ("max", 3))
        if (name, key) != ("output_kl", "max")
    }
    return xr.Dataset(
        {
            **{f"effect_{key}": (axes, value[None, None, None]) for key, value in matrix.items()},
            "count": (axes, np.where(np.isfinite(effect), 12, 0)[None, None, None]),
            **outputs,
            "output_count": (axes[:-1], np.full(bars.shape, 12)),
            "noise_floor": ("target", np.full(layers, 2e-7)),
            "output_noise_floor": ((), 1e-8),
        },
        {
            "scope": ["future"],
            "kind": ["propagated"],
            "part": ["layer"],
            "source": np.arange(layers),
            "target": np.arange(layers),
        },
        {
            **attributes("interactions", model),
            "parameters": {"level": 0.95, "effects": "skip"},
            "documents": {"future": 12},
            "splits": {"future": 40},
            "dropped_documents": {"future": 0},
            "effects_tasks": "3 of 3",
            "request": {"what": "skip"},
        },
    )
