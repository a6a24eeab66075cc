"""nnsight: one trace per batch, every point ``.save()``d, written with safetensors.

Documented recipe: token lists go into ``trace``, which pads them on the left; all saves stand in
one trace (its performance guide), without gradients, and ``tracer.stop()`` leaves the head out
once the last point is read. Tuned: our batches as tensors padded on the right, no KV cache.

https://nnsight.net; docs/usage/save.md, docs/developing/performance.md of ndif-team/nnsight
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import nnsight
import torch
from contest import Contestant, Documents, real_positions, right_padded, serve
from nnsight import TransformersModel
from safetensors.torch import save_file


def load(folder: Path) -> TransformersModel:
    return TransformersModel(
        str(folder), task="text-generation", dtype=torch.bfloat16, dispatch=True
    )


def extract(model: TransformersModel, documents: Documents, mode: str, path: Path) -> int:
    tuned = mode == "ours"
    real = real_positions(documents, side="right" if tuned else "left")
    inputs = {"input_ids": right_padded(documents), "use_cache": False} if tuned else {}
    with model.trace(*([] if tuned else [documents]), **inputs) as tracer:
        states = nnsight.save([layer.input for layer in model.model.layers])
        states.append(model.model.norm.input)
        tracer.stop()
    save_file({f"point_{number:02d}": state[real] for number, state in enumerate(states)}, path)
    return int(real.sum())


if __name__ == "__main__":
    serve(Contestant(load, extract))
