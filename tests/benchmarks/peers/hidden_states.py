"""transformers: ``output_hidden_states=True``, saved with safetensors.

Documented recipe: pad a batch, run the base model with its attention mask, read
``hidden_states``. Its last entry is after the final norm, so the stream before that norm is
taken by a hook on the norm and stands in for it. Tuned: our batches, no mask (padding on the
right of a causal model needs none), no KV cache.

https://huggingface.co/docs/transformers/main_classes/output
"""

from __future__ import annotations

from pathlib import Path

import torch
from contest import Contestant, Documents, real_positions, right_padded, serve
from safetensors.torch import save_file
from transformers import AutoModel, PreTrainedModel


def load(folder: Path) -> PreTrainedModel:
    model = AutoModel.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def keep(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        model.before_norm = inputs[0]

    model.norm.register_forward_pre_hook(keep)
    return model


def extract(model: PreTrainedModel, documents: Documents, mode: str, path: Path) -> int:
    real = real_positions(documents)
    inputs = {"input_ids": right_padded(documents)}
    if mode == "recipe":
        inputs["attention_mask"] = real.long()
    output = model(**inputs, output_hidden_states=True, use_cache=mode == "recipe")
    states = [*output.hidden_states[:-1], model.before_norm]
    save_file({f"point_{number:02d}": state[real] for number, state in enumerate(states)}, path)
    return int(real.sum())


if __name__ == "__main__":
    serve(Contestant(load, extract))
