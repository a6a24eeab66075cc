"""The slow way of the tests: hooks, one full pass for every skipped layer, document and split."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skips import reduce, serve

sys.path.append(str(Path(__file__).resolve().parents[2]))
from slow_interventions import SlowInterventions


def measure(model: SlowInterventions, ids: list[int], splits: list[int]) -> tuple[Any, Any]:
    base, layers = model.run(ids), len(model.layers)
    effects = np.zeros((len(splits), layers, layers), np.float32)
    outputs = np.zeros((len(splits), layers), np.float32)
    places = torch.arange(len(ids))
    for number, split in enumerate(splits):
        plain = base.added, base.logits[split:].softmax(-1)
        for source in range(layers):
            other = model.run(ids, "layer", source, (places >= 1) & (places < split))
            changed = other.added, other.logits[split:].softmax(-1)
            effects[number, source], outputs[number, source] = reduce(plain, changed, split)
    return effects, outputs


if __name__ == "__main__":
    serve(SlowInterventions, measure)
