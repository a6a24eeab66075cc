"""The slow, obvious way: transformers alone, one document at a time, nothing of depthscope."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import zarr
from torch import Tensor
from transformers import AutoModelForCausalLM


@dataclass
class Reference:
    """One document's forward pass: points (L+1, n, d), and what sublayers add (L, n, d)."""

    points: Tensor
    attention: Tensor
    mlp: Tensor
    logits: Tensor


class SlowLlama:
    """A Llama-like model run without any machinery: hooks on every layer, no batching."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa"
        ).eval()

    def run(self, ids: list[int]) -> Reference:
        inputs, attention, mlp = [], [], []
        handles = []
        for layer in self.model.model.layers:
            handles.append(
                layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0].clone()))
            )
            handles.append(
                layer.self_attn.register_forward_hook(
                    lambda _, args, out: attention.append(out[0][0].clone())
                )
            )
            handles.append(
                layer.mlp.register_forward_hook(lambda _, args, out: mlp.append(out[0].clone()))
            )
        handles.append(
            self.model.model.norm.register_forward_pre_hook(
                lambda _, args: inputs.append(args[0][0].clone())
            )
        )
        try:
            with torch.no_grad():
                logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        return Reference(torch.stack(inputs), torch.stack(attention), torch.stack(mlp), logits)


def stored(root: Path, path: str) -> np.ndarray:
    """A whole array of a store, read by zarr-python."""
    return np.asarray(zarr.open_array(root / path, mode="r")[...])


def check_close(ours: np.ndarray, reference: Tensor, dtype: str = "float32") -> None:
    """Check stored planes of one document, (planes, n, d), against those of the reference.

    In float32 every row is within 1e-5 of its norm; in bfloat16, whose last bits depend on the
    shape of the batch, every plane is within 2% of its norm over all rows.
    """
    expected = reference.double().numpy()
    assert ours.shape == expected.shape
    axes, limit = (-1, 1e-5) if dtype == "float32" else ((1, 2), 2e-2)
    error = np.linalg.norm(ours.astype(np.float64) - expected, axis=axes)
    assert (error <= limit * np.linalg.norm(expected, axis=axes)).all(), error.max()
