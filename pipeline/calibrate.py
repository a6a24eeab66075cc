"""`plan --measure`: what this machine does, kept in the cache folder for later plans.

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

from .calibration_disk import DiskTimes, measure_disk
from .calibration_load import SweepTimes, measure_sweep
from .calibration_model import ModelTimes, measure_model, sample_batches
from .checkpoint import cache_folder
from .costs import ModelCosts
from .model_configs import NamedConfig
from .workload import CorpusSize, Selection

#: Raised when a calibration measures something else.
_FORMAT = 2

#: About how long the layers are run.
MEASURE_SECONDS = 20.0


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


def calibrate(
    named: NamedConfig,
    costs: ModelCosts,
    corpus: CorpusSize,
    selection: Selection,
    *,
    threads: int,
    folder: Path,
    seconds: float = MEASURE_SECONDS,
    cache: Path | None = None,
) -> Calibration:
    """Measure a model's shapes and a folder's disk on this machine, and remember the result.

    Parameters
    ----------
    named
        the model's config; where its folder has weights, reading them is measured too.
    threads
        of the worker; this process computes with as many while it measures.
    folder
        where the store will be.
    seconds
        about how long the layers are run; building them comes on top.
    cache
        the folder for what can be made again.

    Raises
    ------
    RequestError
        the folder cannot be written, or the architecture is unknown.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = measure_model(named.config, costs, corpus, selection, seconds)
        sweep = measure_sweep(named, costs, sample_batches(costs, corpus, selection))
        disk = measure_disk(folder, costs.hidden, selection.store_dtype)
    finally:
        torch.set_num_threads(before)
    found = Calibration(threads, corpus.document_tokens, model, disk, sweep)
    path = _path(costs, selection, threads, cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(found))
    return found


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
