"""The measure of all others: the decoder without its head, nothing captured, nothing written.

Both modes run what is called a bare forward pass: ``ours`` in our batches (the best ones),
``recipe`` in the order given with padding and its mask.
"""

from __future__ import annotations

from pathlib import Path

import torch
from contest import Contestant, Documents, real_positions, right_padded, serve
from transformers import AutoModel, PreTrainedModel


def load(folder: Path) -> PreTrainedModel:
    return AutoModel.from_pretrained(folder, dtype=torch.bfloat16).eval()


def extract(model: PreTrainedModel, documents: Documents, mode: str, path: Path) -> int:
    mask = real_positions(documents).long() if mode == "recipe" else None
    model(input_ids=right_padded(documents), attention_mask=mask, use_cache=False)
    return sum(map(len, documents))


if __name__ == "__main__":
    serve(Contestant(load, extract, writes=False))
