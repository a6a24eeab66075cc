"""TransformerLens: ``run_with_cache`` of the TransformerBridge, written with safetensors.

Documented recipe: boot the bridge on the Hugging Face weights, run with a ``names_filter`` for
the streams wanted, padded on the right with an attention mask. Tuned: our batches, no mask, no KV
cache, attention patterns not asked for, logits of the last position only (the bridge has no way
to leave the head out). The bridge forces eager attention so that its hooks see the patterns.

https://transformerlensorg.github.io/TransformerLens; docs/source/content/hook_system.md
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from contest import Contestant, Documents, real_positions, right_padded, serve
from safetensors.torch import save_file
from transformer_lens.model_bridge import TransformerBridge

TUNED = {"use_cache": False, "output_attentions": False, "logits_to_keep": 1}


def load(folder: Path) -> TransformerBridge:
    return TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.bfloat16)


def extract(bridge: TransformerBridge, documents: Documents, mode: str, path: Path) -> int:
    real = real_positions(documents)
    layers = len(bridge.blocks)
    names = [f"blocks.{layer}.hook_in" for layer in range(layers)]
    names.append(f"blocks.{layers - 1}.hook_out")
    options = TUNED if mode == "ours" else {"attention_mask": real.long()}
    _, cache = bridge.run_with_cache(
        right_padded(documents), names_filter=names, return_type=None, **options
    )
    save_file({f"point_{number:02d}": cache[name][real] for number, name in enumerate(names)}, path)
    return int(real.sum())


if __name__ == "__main__":
    serve(Contestant(load, extract))
