"""`plan --measure`: what this machine does with a model's shapes, measured."""

from __future__ import annotations

from pathlib import Path

import torch

from .calibration import Calibration, remember
from .calibration_disk import measure_disk
from .calibration_load import measure_sweep
from .calibration_model import measure_model, sample_batches
from .costs import ModelCosts
from .model_configs import NamedConfig
from .workload import CorpusSize, Selection

#: About how long the layers are run.
MEASURE_SECONDS = 20.0


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
    remember(found, costs, selection, cache)
    return found
