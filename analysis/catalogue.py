"""The arrays a store may have: where they lie, what they mean, and which option makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from depthscope.storage.array_names import GROUPS, LABELS
from depthscope.storage.arrays import ArrayPlan
from depthscope.storage.coordinates import read_coordinate
from depthscope.storage.errors import RequestError

from .snapshot import Snapshot


@dataclass(frozen=True)
class Entry:
    """One array: its group in run.json, meaning, unit, and what to do where it is missing."""

    group: str
    meaning: str
    unit: str
    remedy: str


_SUBLAYERS = "extract with --sublayers"
_NO_STATISTICS = "it was extracted without statistics"
_NO_LENS = "it was extracted with --lens-rows none"

CATALOGUE = {
    "residual": Entry(
        "activations", "residual stream at a point", "1", "it was extracted with --points none"
    ),
    "attention_output": Entry("activations", "what attention adds", "1", _SUBLAYERS),
    "mlp_output": Entry("activations", "what the MLP adds", "1", _SUBLAYERS),
    "norm": Entry("statistics", "Euclidean norm", "1", _NO_STATISTICS),
    "norm_ratio": Entry(
        "statistics", "norm of what a part adds over the norm of its input", "1", _NO_STATISTICS
    ),
    "cosine": Entry("statistics", "cosine of what a part adds to its input", "1", _NO_STATISTICS),
    "kl": Entry("lens", "KL divergence of the point's to the final distribution", "nat", _NO_LENS),
    "top5_overlap": Entry(
        "lens", "share of the five likeliest tokens that are in the final five", "1", _NO_LENS
    ),
    "top1_agreement": Entry("lens", "whether the likeliest token is the final one", "1", _NO_LENS),
    "entropy": Entry("lens", "entropy of the point's distribution", "nat", _NO_LENS),
    "next_rank": Entry("lens", "rank of the token that follows; 1 is best", "1", _NO_LENS),
    "next_probability": Entry("lens", "probability of the token that follows", "1", _NO_LENS),
}


def find_plan(snapshot: Snapshot, name: str) -> ArrayPlan | None:
    """How an array of a store is laid out; None where the store does not have it."""
    group = CATALOGUE[name].group
    path = f"{GROUPS[group]}/{name}"
    if not snapshot.has_group(group) or not (snapshot.root / path / "zarr.json").exists():
        return None
    return ArrayPlan.read(snapshot.root, path)


def require_plan(snapshot: Snapshot, name: str) -> ArrayPlan:
    """How an array of a store is laid out.

    Raises
    ------
    RequestError
        The store does not have it; the message says which option makes it.
    """
    plan = find_plan(snapshot, name)
    if plan is None:
        raise RequestError(f"{snapshot.root} has no {name}: {CATALOGUE[name].remedy}")
    return plan


def axis_labels(snapshot: Snapshot, name: str, dimension: str) -> Any:
    """Labels of an axis other than the row: names, or the store's own numbers."""
    if dimension in LABELS:
        return np.array(LABELS[dimension])
    return read_coordinate(snapshot.root, f"{GROUPS[CATALOGUE[name].group]}/{dimension}")
