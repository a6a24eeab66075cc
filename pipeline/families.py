"""Where each family of decoders adds to its residual stream.

A family names, inside the base model, the list of decoder layers, and inside a layer the module
whose output is ADDED to the stream for attention and for the MLP (after the output norm, for
blocks that have one), and the order in which the block adds. Families in the table are fixed;
for any other architecture `candidates` proposes families by the names of its modules, and the
identity check of `capture` decides whether one of them is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from depthscope.storage.errors import RequestError
from torch import Tensor, nn

ORDERS = ("attention_first", "sum_first", "mlp_first")


@dataclass(frozen=True)
class Family:
    """Names of the modules that matter, and the block's order of addition."""

    name: str
    """The architecture's ``model_type``."""
    layers: str
    """Path of the list of decoder layers in the base model."""
    attention: str
    """Path, in a layer, of the module whose output attention adds to the stream."""
    mlp: str
    """Path, in a layer, of the module whose output the MLP (or MoE block) adds to the stream."""
    orders: tuple[str, ...] = ("attention_first",)
    """Orders of addition the block may have; one must hold for all layers."""

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The decoder layers of a base model, in order."""
        return list(model.get_submodule(self.layers).children())

    def attention_of(self, block: nn.Module) -> nn.Module:
        """The module of a layer whose output is a_l."""
        return block.get_submodule(self.attention)

    def mlp_of(self, block: nn.Module) -> nn.Module:
        """The module of a layer whose output is m_l."""
        return block.get_submodule(self.mlp)


def add(order: str, h: Tensor, a: Tensor, m: Tensor) -> Tensor:
    """h + a + m, rounded in the tensors' dtype in the given order of `ORDERS`."""
    if order == "attention_first":
        return (h + a) + m
    if order == "sum_first":
        return h + (a + m)
    return (h + m) + a


def _plain(name: str) -> Family:
    return Family(name, "layers", "self_attn", "mlp")


def _sandwich(name: str, layers: str = "layers") -> Family:
    return Family(name, layers, "post_attention_layernorm", "post_feedforward_layernorm")


_PLAIN = ("llama", "mistral", "qwen2", "qwen3", "phi3", "mixtral", "qwen3_moe")
_SANDWICH = ("olmo2", "gemma2", "gemma3_text")

FAMILIES: dict[str, Family] = {
    **{name: _plain(name) for name in _PLAIN},
    **{name: _sandwich(name) for name in _SANDWICH},
    "gpt2": Family("gpt2", "h", "attn", "mlp"),
    "gpt_neox": Family("gpt_neox", "layers", "attention", "mlp"),
}

_LAYER_LISTS = ("layers", "h", "blocks", "block", "layer")
_ATTENTION = (
    "self_attn",
    "attention",
    "attn",
    "self_attention",
    "post_attention_layernorm",
    "post_self_attn_layernorm",
    "post_attention_norm",
    "post_attn_norm",
)
_MLP = (
    "mlp",
    "feed_forward",
    "ffn",
    "moe",
    "block_sparse_moe",
    "fc2",
    "post_feedforward_layernorm",
    "post_mlp_layernorm",
    "post_ffw_norm",
    "post_mlp_norm",
)


def candidates(model: nn.Module, model_type: str, n_layers: int, parallel: bool) -> list[Family]:
    """Families that may describe a base model: the table's one, or guesses from module names.

    Parameters
    ----------
    model
        the base model (without its language-model head); weights may be on any device.
    model_type
        the config's ``model_type``.
    n_layers
        L, the number of decoder layers the config names.
    parallel
        the config's ``use_parallel_residual``.

    Raises
    ------
    RequestError
        no list of L decoder layers with attention and MLP modules was found.
    """
    if model_type in FAMILIES:
        family = FAMILIES[model_type]
        if model_type == "gpt_neox" and parallel:
            family = replace(family, orders=("sum_first",))
        return [family]
    found = list(_guesses(model, model_type, n_layers))
    if not found:
        raise RequestError(
            f"model type {model_type!r}: no list of {n_layers} decoder layers with attention and "
            "MLP modules was found in it; use a decoder of a family that depthscope knows: "
            + ", ".join(sorted(FAMILIES))
        )
    return found


def _guesses(model: nn.Module, model_type: str, n_layers: int) -> Iterator[Family]:
    for path, module in model.named_modules():
        is_list = isinstance(module, nn.ModuleList) and len(module) == n_layers
        if not is_list or path.rpartition(".")[2] not in _LAYER_LISTS:
            continue
        shared = set.intersection(*({n for n, _ in b.named_children()} for b in module.children()))
        attention = [name for name in _ATTENTION if name in shared]
        mlp = [name for name in _MLP if name in shared]
        for attention_name, mlp_name in product(attention, mlp):
            yield Family(model_type, path, attention_name, mlp_name, ORDERS)
