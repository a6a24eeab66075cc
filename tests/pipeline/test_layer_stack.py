"""Layers one by one against transformers' own forward of the same batch, bit for bit.

The reference is transformers alone with hooks. One case has no such reference: documents packed
for a model with full attention in sdpa, where the project attends document by document instead of
under a mask; there the whole model's pass, `Body`, is the reference, and transformers' own, with
its mask, must be near.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from depthscope.pipeline.batches import Batch, Piece, micro_batches
from depthscope.pipeline.description import describe_model
from depthscope.pipeline.layer_loader import LayerLoader
from depthscope.pipeline.layer_stack import LayerStack
from depthscope.pipeline.model import load_body
from depthscope.storage.errors import RequestError
from torch import nn

from .test_families import DOCUMENTS, FAMILIES, GATED, make_model

CPU = torch.device("cpu")
FULL_ATTENTION = {"llama", "qwen3", "olmo2", "gpt2", "gpt_neox", "gpt_neox_parallel", "mixtral"} | {
    "qwen3_moe",
    "stablelm",
    "stablelm_parallel",
}
# Not in the table, and odd: layers that return tuples, buffers in every layer, a shared expert.
ODD = {
    "bloom": hf.BloomConfig(vocab_size=97, hidden_size=64, n_layer=3, n_head=4),
    "gptj": hf.GPTJConfig(vocab_size=97, n_embd=64, n_layer=3, n_head=4, rotary_dim=8),
    "qwen2_moe": hf.Qwen2MoeConfig(
        **GATED,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    make_model(FAMILIES[request.param][0], path)
    return path


def batch_of(pack: bool) -> Batch:
    pieces = [Piece(i, 0, np.array(ids, np.int32)) for i, ids in enumerate(DOCUMENTS)]
    (batch,) = micro_batches(pieces, 1000, pack=pack, pad_id=5)
    return batch


def transformers_model(folder: Path, dtype: str, attention: str) -> Any:
    return hf.AutoModel.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation=attention
    ).eval()


def states(model: Any, batch: Batch) -> list[torch.Tensor]:
    """h_0..h_L of transformers' own forward: the layers' inputs, and the final norm's."""
    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    norms = ("norm", "ln_f", "final_layer_norm")
    norm = next(getattr(model, name) for name in norms if hasattr(model, name))
    seen: list[torch.Tensor] = []

    def see(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"]).clone())

    hooks = [m.register_forward_pre_hook(see, with_kwargs=True) for m in (*layers, norm)]
    with torch.no_grad():
        model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def chained(loader: LayerLoader, batch: Batch) -> list[torch.Tensor]:
    """h_0..h_L, every layer loaded when its turn comes and dropped after it."""
    frame = loader.frame(CPU)
    frame.load()
    points = [frame.embed(batch)]
    frame.release()
    for layer in range(loader.layers):
        stack = LayerStack(loader, frame, {layer: loader.load_layer(layer, CPU)}, CPU)
        points.append(stack.run(batch, points[-1]))
    return points


@pytest.mark.parametrize("pack", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("attention", ["auto", "eager"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_chain_is_the_whole_model(folder: Path, dtype: str, attention: str, pack: bool) -> None:
    info = describe_model(folder, dtype, attention)
    batch = batch_of(pack)
    expected = states(transformers_model(folder, dtype, info.attention), batch)
    points = chained(LayerLoader(folder, info), batch)
    if pack and info.attention == "sdpa" and folder.name[:-1] in FULL_ATTENTION:
        whole: list[torch.Tensor] = []
        load_body(folder, info).run(
            batch.input_ids, lambda _, h: whole.append(h.clone()), position_ids=batch.position_ids
        )
        for ours, near in zip(points, expected, strict=True):
            error = (ours.double() - near.double()).norm() / near.double().norm()
            assert error < (1e-5 if dtype == "float32" else 2e-2)
        expected = whole
    assert len(points) == len(expected) == info.layers + 1
    for ours, theirs in zip(points, expected, strict=True):
        assert ours.dtype == theirs.dtype == getattr(torch, dtype)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_chain_of_families_that_nobody_knows(tmp_path: Path, name: str, dtype: str) -> None:
    make_model(ODD[name], tmp_path)
    info, batch = describe_model(tmp_path, dtype), batch_of(False)
    expected = states(transformers_model(tmp_path, dtype, info.attention), batch)
    for ours, theirs in zip(chained(LayerLoader(tmp_path, info), batch), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("pack", [False, True], ids=["padded", "packed"])
def test_callbacks_see_what_the_whole_pass_shows(folder: Path, pack: bool) -> None:
    info = describe_model(folder, "bfloat16")
    batch = batch_of(pack)
    expected: list[Any] = []
    load_body(folder, info).run(
        batch.input_ids,
        lambda point, h: expected.append((point, h.clone())),
        lambda layer, *x: expected.append((layer, *[y.clone() for y in x])),
        position_ids=batch.position_ids,
    )
    loader = LayerLoader(folder, info)
    frame = loader.frame(CPU)
    frame.load()
    hidden = frame.embed(batch)
    seen: list[Any] = [(0, hidden)]
    for numbers in ([0], [1, 2]):
        blocks = {layer: loader.load_layer(layer, CPU) for layer in numbers}
        stack = LayerStack(loader, frame, blocks, CPU)
        family = stack.check_identity(batch, hidden)
        assert loader.families[0] == family
        hidden = stack.run(
            batch,
            hidden,
            lambda point, h: seen.append((point, h.clone())),
            lambda layer, *x: seen.append((layer, *[y.clone() for y in x])),
        )
        assert not any(m._forward_hooks for block in blocks.values() for m in block.modules())
    assert [item[0] for item in seen] == [item[0] for item in expected]
    for ours, theirs in zip(seen, expected, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(ours[1:], theirs[1:], strict=True))


def test_a_layer_that_scales_what_it_adds_is_refused(tmp_path: Path) -> None:
    config = hf.GraniteConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        residual_multiplier=0.5,
    )
    make_model(config, tmp_path)
    loader = LayerLoader(tmp_path, describe_model(tmp_path))
    frame = loader.frame(CPU)
    frame.load()
    batch = batch_of(False)
    stack = LayerStack(loader, frame, {1: loader.load_layer(1, CPU)}, CPU)
    with pytest.raises(RequestError, match="'granite' cannot be captured: at layer 1"):
        stack.check_identity(batch, frame.embed(batch))


def test_layers_must_follow_each_other(tiny_model: Path) -> None:
    loader = LayerLoader(tiny_model, describe_model(tiny_model))
    blocks = {0: loader.load_layer(0, CPU), 2: loader.load_layer(2, CPU)}
    with pytest.raises(ValueError, match="do not follow"):
        LayerStack(loader, loader.frame(CPU), blocks, CPU)
