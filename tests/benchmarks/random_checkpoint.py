"""A Llama checkpoint of any shape with random weights, written layer by layer."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

#: Random numbers that are drawn once and repeated: what they are does not matter to the clock.
TILE = 1 << 24


def write(folder: Path, tokenizer_of: Path, **shape: Any) -> int:
    """Save a model in bfloat16, one file per layer; bytes of its weights.

    Parameters
    ----------
    folder
        A new folder.
    tokenizer_of
        A model whose tokenizer is taken; the vocabulary must hold it.
    shape
        Fields of transformers' LlamaConfig.
    """
    config = LlamaConfig(dtype="bfloat16", architectures=["LlamaForCausalLM"], **shape)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tile = (torch.randn(TILE, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    files: dict[str, list[str]] = defaultdict(list)
    shapes = {name: tensor.shape for name, tensor in model.named_parameters()}
    for name in shapes:
        part = name.split(".")[2] if ".layers." in name else name.split(".")[-2]
        files[f"model-{part}.safetensors"].append(name)
    folder.mkdir(parents=True)
    total = 0
    for file, names in files.items():
        tensors = {name: _values(shapes[name], tile) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        total += sum(tensor.nbytes for tensor in tensors.values())
        del tensors
    index = {name: file for file, names in files.items() for name in names}
    content = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_of).save_pretrained(folder)
    return total


def _values(shape: torch.Size, tile: torch.Tensor) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    count = shape.numel()
    return tile.repeat(-(-count // len(tile)))[:count].reshape(shape)
