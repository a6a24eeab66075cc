"""Settings that libraries read once, when they are first loaded."""

from __future__ import annotations

import os

SETTINGS = {
    # A cluster of a command's own reports to nobody.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Threads that spin while they wait make every other process several times slower.
    "OMP_WAIT_POLICY": "passive",
    # oneDNN and PyTorch's bridge to it keep something for every shape they have seen (about 5 MB
    # in bfloat16), and batches have many shapes: without a bound a worker grows with the corpus.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
    "LRU_CACHE_CAPACITY": "16",
}


def set_environment() -> None:
    """Set them in this process, unless the user has; call it before torch is imported."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
