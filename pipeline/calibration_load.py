"""How fast a checkpoint's layers become modules when their files are in the page cache."""

from __future__ import annotations

import time

from depthscope.storage.errors import RequestError

from .costs import ModelCosts
from .description import describe_model
from .layer_loader import LayerLoader
from .model_configs import NamedConfig

#: Layers that are loaded, each twice: the first time brings them into the page cache.
_LAYERS = 3


def measure_loading(named: NamedConfig, costs: ModelCosts) -> float | None:
    """Seconds for a byte of a layer's weights; None where the model has no weights here."""
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
    return (time.perf_counter() - started) / sum(loader.layer_bytes[layer] for layer in layers)
