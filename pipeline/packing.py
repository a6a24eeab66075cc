"""Documents packed into one line without padding and without a mask.

The linear layers see all tokens of the line at once; attention runs document by document, each with
the kernel, and in the shape, that it would have alone. So no token is padding, and no attention
between documents is computed only to be masked. Used where the model runs transformers' ``sdpa`` in
full causal attention; other models keep transformers' own block mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .description import ModelInfo, load_config
from .families import FAMILIES

#: The name under which transformers finds this attention.
ATTENTION = "depthscope_segments"

_SEGMENTS: ContextVar[list[tuple[int, int]]] = ContextVar("segments")


def segments(position_ids: Tensor) -> list[tuple[int, int]]:
    """Start and end of every document in a line (1, tokens) whose positions restart at 0."""
    starts = torch.nonzero(position_ids[0] == 0)[:, 0].tolist()
    return list(zip(starts, [*starts[1:], position_ids.shape[1]], strict=True))


def packs_without_mask(folder: Path, info: ModelInfo, trust_remote_code: bool = False) -> bool:
    """Whether packing costs this model nothing, and is known to be right for its family."""
    config = load_config(folder, trust_remote_code)
    known = info.family in FAMILIES and info.attention == "sdpa"
    return known and _is_full_attention(config.get_text_config())


def can_attend_by_segment(config: Any, position_ids: Tensor | None) -> bool:
    """Whether a packed line may go without a mask."""
    if position_ids is None or position_ids.shape[0] != 1 or config._attn_implementation != "sdpa":
        return False
    return _is_full_attention(config)


def _is_full_attention(config: Any) -> bool:
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    windowed = window is not None and getattr(config, "use_sliding_window", True)
    return kinds == {"full_attention"} and not windowed


@contextmanager
def attention_by_segment(config: Any, position_ids: Tensor | None) -> Iterator[None]:
    """Let the model attend document by document for the length of the block."""
    token = _SEGMENTS.set([] if position_ids is None else segments(position_ids))
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"
        _SEGMENTS.reset(token)


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    parts = [
        sdpa_attention_forward(
            module, query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], None, **kwargs
        )[0]
        for a, b in _SEGMENTS.get()
    ]
    return torch.cat(parts, dim=1), None


def _no_mask(*_: Any, **__: Any) -> None:
    """Causal attention inside a document needs none."""


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, _no_mask)
