"""The measure of all others: the decoder without its head, nothing captured, nothing written.

Both modes run what is called a bare forward pass: ``recipe`` in the order given with padding and
its mask, ``ours`` in the best batches there are, which are our packed ones: no padding, attention
document by document. That attention is depthscope's own, so this yardstick, unlike the peers,
imports it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from contest import Contestant, Documents, real_positions, right_padded, serve
from depthscope.pipeline.packing import attention_by_segment
from transformers import AutoModel, PreTrainedModel


def load(folder: Path) -> PreTrainedModel:
    return AutoModel.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()


def extract(model: PreTrainedModel, documents: Documents, mode: str, path: Path) -> int:
    if mode == "recipe":
        mask = real_positions(documents).long()
        model(input_ids=right_padded(documents), attention_mask=mask, use_cache=False)
    else:
        line = torch.tensor([[token for ids in documents for token in ids]])
        positions = torch.tensor([[place for ids in documents for place in range(len(ids))]])
        with attention_by_segment(model.config, positions):
            model(input_ids=line, position_ids=positions, use_cache=False)
    return sum(map(len, documents))


if __name__ == "__main__":
    serve(Contestant(load, extract, writes=False))
