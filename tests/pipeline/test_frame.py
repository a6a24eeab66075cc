"""What goes into the first layer, and the arguments of all, without the weights of any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from depthscope.pipeline.description import describe_model
from depthscope.pipeline.layer_loader import LayerLoader
from depthscope.storage.errors import RequestError
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from .test_families import FAMILIES, make_model
from .test_layer_stack import CPU, batch_of


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    make_model(FAMILIES[request.param][0], path)
    return path


def handed_over(folder: Path, batch: Any, dtype: Any) -> tuple[list[Tensor], list[Any]]:
    """Stream and arguments of every layer in transformers' own pass under its eager attention."""
    model = hf.AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    streams, arguments = [], []

    def see(module: Any, args: Any, kwargs: Any) -> None:
        given = dict(kwargs)
        streams.append((args[0] if args else given.pop("hidden_states")).clone())
        arguments.append((args[1:], given))

    for layer in layers:
        layer.register_forward_pre_hook(see, with_kwargs=True)
    with torch.no_grad():
        model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
    return streams, arguments


@pytest.mark.parametrize("pack", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arguments_are_the_model_s_own(folder: Path, dtype: str, pack: bool) -> None:
    batch = batch_of(pack)
    streams, expected = handed_over(folder, batch, getattr(torch, dtype))
    loader = LayerLoader(folder, describe_model(folder, dtype, "eager"))
    frame = loader.frame(CPU)
    arguments = frame.arguments(batch)
    assert loader.bytes_read == 0
    assert len(arguments) == loader.layers
    for ours, (positional, theirs) in zip(arguments, expected, strict=True):
        by_name = {name: ours[name] for name in theirs}
        others = [value for name, value in ours.items() if name not in theirs]
        for mine, wanted in ((by_name, theirs), (others, list(positional))):
            (mine_leaves, mine_tree), (leaves, tree) = tree_flatten(mine), tree_flatten(wanted)
            assert mine_tree == tree
            for x, y in zip(mine_leaves, leaves, strict=True):
                assert torch.equal(x, y) if isinstance(y, Tensor) else x == y
    frame.load()
    assert torch.equal(frame.embed(batch), streams[0])
    frame.release()
    assert not torch.equal(frame.embed(batch), streams[0])
    frame.load()
    assert torch.equal(frame.embed(batch), streams[0])


def test_sliding_and_full_layers_get_masks_of_their_own(tmp_path: Path) -> None:
    make_model(FAMILIES["gemma3_text"][0], tmp_path)
    loader = LayerLoader(tmp_path, describe_model(tmp_path))
    masks = [a["attention_mask"] for a in loader.frame(CPU).arguments(batch_of(False))]
    kinds = loader.frame(CPU).config.layer_types
    assert set(kinds) == {"sliding_attention", "full_attention"}
    assert [mask is None for mask in masks] == [kind == "full_attention" for kind in kinds]


def test_an_embedding_that_is_not_loaded_takes_no_memory(tmp_path: Path) -> None:
    make_model(FAMILIES["gemma2"][0], tmp_path)
    frame = LayerLoader(tmp_path, describe_model(tmp_path)).frame(CPU)
    weights = dict(frame.model.named_parameters())
    assert {w.untyped_storage().nbytes() for w in weights.values() if not w.is_meta} == {4}
    frame.load()
    loaded = {n for n, w in frame.model.named_parameters() if w.untyped_storage().nbytes() > 4}
    assert "embed_tokens.weight" in loaded
    assert all("norm" not in name for name in loaded if not weights[name].is_meta)
    frame.release()
    assert {w.untyped_storage().nbytes() for w in weights.values() if not w.is_meta} == {4}


def test_a_model_whose_arguments_need_the_embedding_is_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = hf.models.llama.modeling_llama.LlamaRotaryEmbedding.forward

    def shifted(self: Any, x: Tensor, position_ids: Tensor) -> Any:
        cos, sin = forward(self, x, position_ids)
        return cos + x.mean(), sin

    module = hf.models.llama.modeling_llama
    monkeypatch.setattr(module.LlamaRotaryEmbedding, "forward", shifted)
    with pytest.raises(RequestError, match=r"'llama': the arguments .* --schedule resident"):
        LayerLoader(tiny_model, describe_model(tiny_model))


def test_a_model_that_does_not_call_its_layers_in_turn_is_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: Any, input_ids: Tensor, **_: Any) -> Any:
        return self.norm(self.embed_tokens(input_ids))

    monkeypatch.setattr(hf.LlamaModel, "forward", forward)
    with pytest.raises(RequestError, match=r"'llama': its layers cannot be called one by one"):
        LayerLoader(tiny_model, describe_model(tiny_model))
