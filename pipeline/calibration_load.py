"""What a sweep does besides computing, where a checkpoint is at hand: loading, looking at rows."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from depthscope.storage.errors import RequestError

from .batches import Batch
from .calibration import SweepTimes
from .costs import ModelCosts
from .description import DTYPES, describe_model
from .layer_loader import LayerLoader
from .model_configs import NamedConfig

#: Layers that are loaded, each twice: the first time brings them into the page cache.
_LAYERS = 3


def measure_sweep(
    named: NamedConfig, costs: ModelCosts, batches: Sequence[Batch]
) -> SweepTimes | None:
    """Measure with this process's threads; None where the model has no weights here."""
    if named.folder is None or not any(named.folder.glob("*.safetensors")):
        return None
    try:
        info = describe_model(named.folder, costs.dtype, costs.attention)
        loader = LayerLoader(named.folder, info)
    except RequestError:
        # Its own Python code, or a checkpoint that extract will refuse: a plan needs neither.
        return None
    layers = range(min(_LAYERS, loader.layers))
    for layer in layers:
        loader.load_layer(layer, "cpu")
    started = time.perf_counter()
    for layer in layers:
        loader.load_layer(layer, "cpu")
    load = (time.perf_counter() - started) / sum(loader.layer_bytes[layer] for layer in layers)
    return SweepTimes(load, _call_seconds(costs, batches))


def _call_seconds(costs: ModelCosts, batches: Sequence[Batch]) -> float:
    rows, taken = 0, 0.0
    for number, batch in enumerate([batches[0], *batches]):
        hidden = torch.zeros(*batch.input_ids.shape, costs.hidden, dtype=DTYPES[costs.dtype])
        started = time.perf_counter()
        torch.isfinite(hidden).all()
        # The first call warms up.
        if number:
            taken += time.perf_counter() - started
            rows += batch.tokens
    return taken / rows
