"""A model's final norm and unembedding, read from its checkpoint without loading the rest.

The norm's formula is found by trying it: the architecture's own norm module, with the
checkpoint's weights, must give the same numbers as the formula that the store's head will name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from depthscope.storage.errors import RequestError
from depthscope.storage.head import Head, NormKind
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn

from . import families
from .checkpoint import StoredTensor, stored_tensors
from .description import DTYPES, ModelInfo, build_skeleton, load_config

_NORM_NAMES = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "final_norm")
_EPSILON_NAMES = ("eps", "variance_epsilon", "epsilon")
_WITHOUT = "run with --no-head and --lens-rows none"
_OTHER_NAMES = ("embed_out.weight", "output.weight")  # of lm_head.weight, in older checkpoints
_DIVIDING = "granite"  # Granite divides by logits_scaling; everybody else multiplies
_TAIL = re.compile(r"logit.*(scal|cap)|lm_head_multiplier|dim_model_base")
_KNOWN_TAIL = ("final_logit_softcapping", "attn_logit_softcapping", "logit_scale", "logits_scaling")


def export_head(folder: Path, info: ModelInfo, trust_remote_code: bool = False) -> Head:
    """Read the head of a checkpoint: final norm, unembedding, bias, soft cap and scale.

    The unembedding (and its bias) is in the dtype the model runs in; the norm's weight is
    float32, its values rounded to that dtype first where the model does so.

    Raises
    ------
    RequestError
        the checkpoint has no language-model head, or one that is more than a norm,
        a matrix, a scale and a soft cap.
    """
    config = load_config(folder, trust_remote_code)
    model = build_skeleton(config, info.attention, trust_remote_code, with_head=True)
    stored = stored_tensors(folder)
    dtype = DTYPES[info.dtype]
    output = model.get_output_embeddings()
    if output is None:
        raise RequestError(f"model type {info.family!r} has no language-model head; {_WITHOUT}")
    matrix = model.get_input_embeddings() if info.tied_embeddings else output
    unembedding = _read(stored, f"{_path_of(model, matrix)}.weight", dtype, *_OTHER_NAMES)
    if unembedding is None:
        raise RequestError(f"the checkpoint in {folder} lacks its unembedding; {_WITHOUT}")
    bias = _read(stored, f"{_path_of(model, output)}.bias", dtype)
    path, norm = _final_norm(model, info)
    weights = {name: _read(stored, f"{path}.{name}", dtype) for name, _ in norm.named_parameters()}
    if weights.get("weight") is None:
        raise RequestError(f"the checkpoint in {folder} lacks {path}.weight; fetch it again")
    kind, epsilon, weight, norm_bias = _norm_formula(norm, weights, info)
    soft_cap, scale = _tail(config.get_text_config(), info)
    return Head(
        norm=kind,
        epsilon=epsilon,
        weight=weight.numpy(),
        norm_bias=None if norm_bias is None else norm_bias.numpy(),
        unembedding=_numpy(unembedding),
        bias=None if bias is None else _numpy(bias),
        soft_cap=soft_cap,
        scale=scale,
    )


def _numpy(tensor: Tensor) -> NDArray[Any]:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.asarray(tensor.numpy())


def _path_of(model: nn.Module, wanted: nn.Module) -> str:
    return str(next(path for path, module in model.named_modules() if module is wanted))


def _read(
    stored: dict[str, StoredTensor], path: str, dtype: torch.dtype, *others: str
) -> Tensor | None:
    """The tensor of that name; checkpoints of the base model alone lack the first part of it."""
    parts = path.split(".")
    tails = [".".join(parts[start:]) for start in range(len(parts) - 1)]
    name = next((name for name in (*tails, *others) if name in stored), None)
    if name is None:
        return None
    with safe_open(stored[name].file, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor.to(dtype).contiguous()


def _final_norm(model: Any, info: ModelInfo) -> tuple[str, nn.Module]:
    base = model.base_model
    family = families.candidates(base, info.family, info.layers, False)[0]
    parent = base.get_submodule(family.layers.rpartition(".")[0])
    for name in _NORM_NAMES:
        norm = getattr(parent, name, None)
        if isinstance(norm, nn.Module):
            return _path_of(model, norm), norm
    raise RequestError(f"model type {info.family!r}: no final norm was found; {_WITHOUT}")


def _rms(x: Tensor, epsilon: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)


def _standard(x: Tensor, epsilon: float) -> Tensor:
    return _rms(x - x.mean(-1, keepdim=True), epsilon)


NORMALISE: dict[NormKind, Callable[[Tensor, float], Tensor]] = {
    "rmsnorm": _rms,
    "layernorm": _standard,
}
"""The two ways of normalising rows (n, d) float32 before the weight."""


def _norm_formula(
    norm: nn.Module, stored: dict[str, Tensor | None], info: ModelInfo
) -> tuple[NormKind, float, Tensor, Tensor | None]:
    weights = {name: value.float() for name, value in stored.items() if value is not None}
    epsilon = next((float(getattr(norm, n)) for n in _EPSILON_NAMES if hasattr(norm, n)), 0.0)
    norm = norm.to_empty(device="cpu").float()
    norm.load_state_dict(weights, strict=False)
    generator = torch.Generator().manual_seed(0)
    # From large rows to rows so small that epsilon decides; shifted, so that a mean would show.
    sizes = torch.tensor([100.0, 1.0, 1e-2, epsilon**0.5])[:, None]
    rows = sizes * (torch.randn(4, weights["weight"].numel(), generator=generator) + 1.0)
    with torch.no_grad():
        expected = norm(rows)
    bias = weights.get("bias")
    for kind, normalise in NORMALISE.items():
        for weight in (weights["weight"], 1.0 + weights["weight"]):
            result = normalise(rows, epsilon) * weight + (0.0 if bias is None else bias)
            if torch.allclose(result, expected, rtol=1e-4, atol=1e-5):
                return kind, epsilon, weight, bias
    raise RequestError(
        f"model type {info.family!r}: its final norm ({type(norm).__name__}) is neither an RMS "
        f"norm nor a layer norm; {_WITHOUT}"
    )


def _tail(config: Any, info: ModelInfo) -> tuple[float | None, float]:
    settings = {k: v for k, v in config.to_dict().items() if _TAIL.search(k) and v not in (None, 1)}
    unknown = sorted(set(settings) - set(_KNOWN_TAIL))
    if unknown:
        raise RequestError(
            f"model type {info.family!r} changes its logits by {', '.join(unknown)}, which the "
            f"lens does not know; {_WITHOUT}"
        )
    scale = float(settings.get("logit_scale", 1.0))
    scaling = float(settings.get("logits_scaling", 1.0))
    scale *= 1.0 / scaling if info.family.startswith(_DIVIDING) else scaling
    return settings.get("final_logit_softcapping"), scale
