"""What `plan --measure` found of this machine, kept in the cache folder for later plans.

A calibration belongs to one model's shapes, dtype and attention, a number of threads, and the way
micro-batches are formed; it is used for any corpus, with attention scaled to its documents' length.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import blake3
import torch
from depthscope.storage.atomic import write_json

from .calibration_disk import DiskTimes
from .checkpoint import cache_folder
from .costs import ModelCosts
from .workload import Selection

#: Raised when a calibration measures something else.
_FORMAT = 2


@dataclass(frozen=True)
class ModelTimes:
    """Seconds of one worker's threads, for one row.

    Attributes
    ----------
    layers
        Of each layer.
    frame
        Of embedding, masks and final norm together.
    plane
        Of copying one plane into the block of stored rows.
    statistics
        Of one layer's statistics.
    lens
        Of lens values at all points, for a row that gets them.
    products
        GFLOP/s by shape (out × in) of the layers' matrix products at a micro-batch's rows.
    held
        Layers that were really run; 0: they are too large, and were added up from products.
    """

    layers: tuple[float, ...]
    frame: float
    plane: float
    statistics: float
    lens: float
    products: dict[str, float]
    held: int


@dataclass(frozen=True)
class SweepTimes:
    """Seconds of a sweep's own work.

    Attributes
    ----------
    load
        For a byte of a layer's weights, from the page cache to a module.
    call
        For a row of a layer: looking for values that are not finite.
    """

    load: float
    call: float


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes
    ----------
    threads
        Of the worker.
    document_tokens
        Length of the documents that the layers ran over, on average over tokens.
    model, disk
        The measurements.
    sweep
        None where the model's weights were not here.
    """

    threads: int
    document_tokens: float
    model: ModelTimes
    disk: DiskTimes
    sweep: SweepTimes | None = None

    def layers(self, costs: ModelCosts, document_tokens: float) -> tuple[float, ...]:
        """Seconds a row of each layer, for documents of another length."""
        asked = costs.layer_flops(document_tokens)
        measured = costs.layer_flops(self.document_tokens)
        return tuple(
            seconds * here / there
            for seconds, here, there in zip(self.model.layers, asked, measured, strict=True)
        )


def remembered(
    costs: ModelCosts, selection: Selection, threads: int, cache: Path | None = None
) -> Calibration | None:
    """An earlier calibration of these shapes on this machine; None where there is none."""
    try:
        found = json.loads(_path(costs, selection, threads, cache).read_text(encoding="utf-8"))
        model = found["model"]
        return Calibration(
            int(found["threads"]),
            float(found["document_tokens"]),
            ModelTimes(**{**model, "layers": tuple(model["layers"])}),
            DiskTimes(**found["disk"]),
            SweepTimes(**found["sweep"]) if found["sweep"] else None,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(
    found: Calibration, costs: ModelCosts, selection: Selection, cache: Path | None = None
) -> None:
    """Keep a calibration for later plans on this machine."""
    path = _path(costs, selection, found.threads, cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(found))


def _path(costs: ModelCosts, selection: Selection, threads: int, cache: Path | None) -> Path:
    key: Mapping[str, Any] = {
        "format": _FORMAT,
        "machine": [platform.node(), platform.processor(), os.cpu_count(), torch.__version__],
        "layers": [asdict(layer) for layer in costs.layers],
        "hidden": costs.hidden,
        "vocabulary": costs.vocabulary,
        "dtype": costs.dtype,
        "attention": costs.attention,
        "batch_tokens": selection.batch_tokens,
        "packed": selection.packed,
        "threads": threads,
    }
    digest = blake3.blake3(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_folder(cache) / "plans" / f"{digest[:32]}.json"
