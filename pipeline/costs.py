"""What a model costs, from its config alone: parameters, bytes and FLOPs of every layer.

Parameters are counted on the meta device, where transformers builds any of its architectures
without weights. A token costs two FLOPs for every parameter that it uses (of a mixture of experts:
the shared part, and as many experts as it is sent to) and, for each position that it attends to,
two for every value of its queries and two for every value of its mixed values. A causal document of
S tokens is attended to half on average, a sliding window of w tokens less:

    FLOPs per token = 2·P_body + Σ_layers 2·n_heads·(d_query + d_value)·attended(S, w)

which is 2·P_body + 2·L·S·n_heads·d_head where all layers attend to everything. Embedding and head
multiply nothing here: all schedules stop before the head.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from depthscope.storage.errors import RequestError
from torch import nn

from .description import DTYPES, build_skeleton
from .families import candidates

_EXPERTS = re.compile(r"(^|\.)experts\.")
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_USED = ("num_experts_per_tok", "moe_top_k", "moe_topk", "top_k")


def item_size(dtype: str) -> int:
    """Bytes of a value of a dtype that models run in."""
    return DTYPES[dtype].itemsize


@dataclass(frozen=True)
class LayerCosts:
    """One decoder layer.

    Attributes
    ----------
    parameters
        All of them.
    used
        Those that one token uses.
    mixing
        FLOPs of attention for each position that a token attends to.
    window
        Positions that a token attends to at most; None: all before it.
    largest
        Parameters of the largest single tensor.
    experts, expert_count, experts_used
        Of a mixture of experts: parameters of all experts, how many they are, and how many of them
        a token is sent to.
    """

    parameters: int
    used: int
    mixing: int
    window: int | None
    largest: int
    experts: int = 0
    expert_count: int = 0
    experts_used: int = 0

    @property
    def expert_parameters(self) -> int:
        """Parameters of one of its experts."""
        return self.experts // max(1, self.expert_count)

    def flops(self, document_tokens: float) -> float:
        """FLOPs per token of a document of that many tokens."""
        return 2 * self.used + self.mixing * attended(document_tokens, self.window)


def attended(document_tokens: float, window: int | None) -> float:
    """Positions that a token of a causal document attends to, on average."""
    if window is None or document_tokens <= window:
        return document_tokens / 2
    return window - window**2 / (2 * document_tokens)


@dataclass(frozen=True)
class ModelCosts:
    """A model, as far as planning needs it.

    Attributes
    ----------
    name, family, dtype
        What it is, and what it runs in.
    attention
        The attention implementation that will run.
    hidden, heads, vocabulary
        Sizes of the config.
    inner
        Values per token in the widest place inside a layer.
    context
        Longest input that the config names.
    layers
        In order.
    frame
        Parameters outside the layers and the head: embeddings and final norm.
    parameters
        All of them, a head of its own included.
    """

    name: str
    family: str
    dtype: str
    attention: str
    hidden: int
    heads: int
    vocabulary: int
    inner: int
    context: int | None
    layers: tuple[LayerCosts, ...]
    frame: int
    parameters: int

    @property
    def itemsize(self) -> int:
        """Bytes of a weight or an activation."""
        return item_size(self.dtype)

    @cached_property
    def body(self) -> int:
        """Parameters of all layers."""
        return sum(layer.parameters for layer in self.layers)

    @cached_property
    def layer_bytes(self) -> list[int]:
        """Bytes of each layer's weights."""
        return [layer.parameters * self.itemsize for layer in self.layers]

    @property
    def frame_bytes(self) -> int:
        """Bytes of embeddings and final norm."""
        return self.frame * self.itemsize

    @property
    def body_bytes(self) -> int:
        """Bytes of what runs: layers, embeddings and final norm."""
        return sum(self.layer_bytes) + self.frame_bytes

    def layer_flops(self, document_tokens: float) -> list[float]:
        """FLOPs per token of each layer."""
        return [layer.flops(document_tokens) for layer in self.layers]

    def flops(self, document_tokens: float) -> float:
        """FLOPs per token of all layers."""
        return sum(self.layer_flops(document_tokens))

    def point_bytes(self, itemsize: int | None = None) -> int:
        """Bytes of one token at one point."""
        return self.hidden * (itemsize or self.itemsize)


def model_costs(
    config: Any,
    dtype: str,
    *,
    name: str | None = None,
    attention: str = "auto",
    trust_remote_code: bool = False,
) -> ModelCosts:
    """What a model of that config costs; builds it on the meta device (a second or two).

    Parameters
    ----------
    config
        a transformers config of a decoder.
    dtype
        what it will run in.
    attention
        the attention implementation asked for.

    Raises
    ------
    RequestError
        the architecture cannot be built, or has no list of decoder layers.
    """
    text = config.get_text_config()
    body, total = _skeleton(text, attention, trust_remote_code)
    parallel = bool(getattr(text, "use_parallel_residual", False))
    family = candidates(body, text.model_type, text.num_hidden_layers, parallel)[0]
    blocks = family.blocks(body)
    layers = tuple(_layer(text, number, block) for number, block in enumerate(blocks))
    inside = sum(layer.parameters for layer in layers)
    return ModelCosts(
        name=name or str(text.model_type),
        family=str(text.model_type),
        dtype=dtype,
        attention=str(body.config._attn_implementation),
        hidden=int(text.hidden_size),
        heads=int(text.num_attention_heads),
        vocabulary=int(text.vocab_size),
        inner=_inner(text),
        context=getattr(text, "max_position_embeddings", None),
        layers=layers,
        frame=_count(body) - inside,
        parameters=total,
    )


def _skeleton(config: Any, attention: str, trust_remote_code: bool) -> tuple[Any, int]:
    """The body on the meta device, and the parameters of the model with its head."""
    try:
        whole = build_skeleton(config, attention, trust_remote_code, with_head=True)
    except RequestError:
        body = build_skeleton(config, attention, trust_remote_code)
        return body, _count(body)
    return whole.base_model, _count(whole)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _layer(config: Any, number: int, block: nn.Module) -> LayerCosts:
    sizes = {name: parameter.numel() for name, parameter in block.named_parameters()}
    experts = sum(size for name, size in sizes.items() if _EXPERTS.search(name))
    idle, mixture = 0, (0, 0, 0)
    if experts:
        count, used = _first(config, _EXPERT_COUNTS), _first(config, _EXPERTS_USED)
        if count and used:
            idle = experts // count * (count - used)
            mixture = (experts, count, used)
    window, mixing = _attention(config, number)
    total = sum(sizes.values())
    return LayerCosts(total, total - idle, mixing, window, max(sizes.values(), default=0), *mixture)


def _first(config: Any, names: tuple[str, ...]) -> int | None:
    found = (getattr(config, name, None) for name in names)
    return next((int(value) for value in found if value), None)


def _attention(config: Any, number: int) -> tuple[int | None, int]:
    """Window of a layer, and FLOPs for each position that a token attends to."""
    heads = int(config.num_attention_heads)
    plain = getattr(config, "head_dim", None) or config.hidden_size // heads
    nope, rope = (getattr(config, f"qk_{kind}_head_dim", None) for kind in ("nope", "rope"))
    query = nope + rope if nope and rope else plain
    value = getattr(config, "v_head_dim", None) or plain
    mixing = 2 * heads * (query + value)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        used = getattr(config, "use_sliding_window", True)
        return (window if used else None), mixing
    kind = kinds[number]
    if kind == "full_attention":
        return None, mixing
    if kind == "sliding_attention":
        return window, mixing
    if kind == "chunked_attention":
        return getattr(config, "attention_chunk_size", None), mixing
    # Linear attention and state spaces keep a state of fixed size: only their parameters count.
    return None, 0


def _inner(config: Any) -> int:
    """Values per token in the widest place of a layer: the MLP, or a token's experts."""
    widths = [getattr(config, name, None) or 0 for name in ("intermediate_size", "n_inner")]
    if not any(widths):
        widths.append(4 * config.hidden_size)
    used, expert = _first(config, _EXPERTS_USED), getattr(config, "moe_intermediate_size", None)
    if used and expert:
        widths.append((used + (getattr(config, "n_shared_experts", None) or 0)) * expert)
    elif used and _first(config, _EXPERT_COUNTS):
        widths.append(used * (getattr(config, "intermediate_size", None) or 0))
    return int(max(widths))
