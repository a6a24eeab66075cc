"""nnsight: one trace for every skipped layer, document and split, as the paper's code does it.

Inside a trace the output of the skipped layer is replaced by its input at the earlier positions;
what every layer adds and the logits are saved.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import nnsight
import numpy as np
import torch
from nnsight import TransformersModel
from skips import reduce, serve


def load(folder: Path) -> TransformersModel:
    return TransformersModel(
        str(folder), task="text-generation", dtype=torch.float32, dispatch=True
    )


def run(
    model: TransformersModel, ids: list[int], split: int = 0, skipped: int = -1
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the layers add, (layers, tokens, d), and the logits (tokens, V)."""
    with model.trace(input_ids=torch.tensor([ids]), use_cache=False):
        added = []
        for number, layer in enumerate(model.model.layers):
            before = layer.input
            if number == skipped:
                layer.output[:, 1:split] = before[:, 1:split]
            added.append(layer.output[0] - before[0])
        states = nnsight.save(torch.stack(added))
        logits = nnsight.save(model.lm_head.output[0])
    return states, logits


def measure(model: TransformersModel, ids: list[int], splits: list[int]) -> tuple[Any, Any]:
    layers = len(model.model.layers)
    base = run(model, ids)
    effects = np.zeros((len(splits), layers, layers), np.float32)
    outputs = np.zeros((len(splits), layers), np.float32)
    for number, split in enumerate(splits):
        plain = base[0], base[1][split:].softmax(-1)
        for source in range(layers):
            states, logits = run(model, ids, split, source)
            changed = states, logits[split:].softmax(-1)
            effects[number, source], outputs[number, source] = reduce(plain, changed, split)
    return effects, outputs


if __name__ == "__main__":
    serve(load, measure)
