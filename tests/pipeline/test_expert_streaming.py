"""A layer whose experts come in groups against transformers' own pass, bit for bit."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from depthscope.pipeline.batches import Batch, Piece, micro_batches
from depthscope.pipeline.description import describe_model
from depthscope.pipeline.expert_loader import ExpertLoader
from depthscope.pipeline.expert_streaming import StreamedLayer, run_streamed
from depthscope.pipeline.layer_loader import LayerLoader
from depthscope.pipeline.layer_stack import LayerStack
from depthscope.storage.errors import RequestError
from safetensors.torch import save_file
from torch import Tensor

from .checkpoints import rewrite, stored_bytes
from .test_families import GATED, make_model
from .test_layer_stack import CPU, states, transformers_model

MOE: dict[str, Any] = {**GATED, "num_hidden_layers": 2}
FAMILIES = {
    "mixtral": hf.MixtralConfig(**MOE, num_local_experts=8, num_experts_per_tok=2),
    # Rows of neither a cache line nor a vector's width.
    "qwen3_moe": hf.Qwen3MoeConfig(
        **{**MOE, "hidden_size": 56},
        num_experts=16,
        num_experts_per_tok=5,
        moe_intermediate_size=24,
        head_dim=16,
    ),
    # Biases, transposed weights, and an activation of its own.
    "gpt_oss": hf.GptOssConfig(
        **MOE, num_local_experts=6, num_experts_per_tok=2, head_dim=16, sliding_window=8
    ),
    # A shared expert, and a router in float32.
    "deepseek_v3": hf.DeepseekV3Config(
        **{**MOE, "num_key_value_heads": 4},
        n_routed_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=32,
        n_group=2,
        topk_group=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        first_k_dense_replace=1,
    ),
    "fused": None,
}
LAYER = 1


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "fused":
        make_model(FAMILIES["mixtral"], path)
        fuse(path)
    else:
        make_model(FAMILIES[request.param], path)
    return path


def fuse(folder: Path) -> None:
    """All experts in one tensor, as transformers 5 holds them in memory."""
    model = hf.AutoModelForCausalLM.from_pretrained(folder)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")


def several(pack: bool) -> list[Batch]:
    lengths = (70, 41, 64, 31, 5, 100, 1, 90, 13)
    draw = np.random.default_rng(0)
    pieces = [Piece(i, 0, draw.integers(3, 90, n).astype(np.int32)) for i, n in enumerate(lengths)]
    return list(micro_batches(pieces, 150, pack=pack, pad_id=1))


def per_group(loader: LayerLoader, experts: int) -> int:
    return 2 * experts * ExpertLoader(loader, LAYER).expert_bytes


@pytest.mark.parametrize("experts", [1, 3, 100])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_layer_streamed_is_the_layer_of_the_whole_model(
    folder: Path, dtype: str, experts: int
) -> None:
    info, batches = describe_model(folder, dtype), several(False)
    whole = transformers_model(folder, dtype, info.attention)
    expected = [states(whole, batch) for batch in batches]
    loader = LayerLoader(folder, info)
    hidden = [points[LAYER] for points in expected]
    bound = per_group(loader, experts)
    results = run_streamed(loader, loader.frame(CPU), LAYER, CPU, batches, hidden, bound)
    for ours, points in zip(results, expected, strict=True):
        assert torch.equal(ours, points[LAYER + 1])
    assert loader.bytes_read == stored_bytes(folder, f"layers.{LAYER}.")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_batches_and_callbacks_as_of_the_resident_layer(folder: Path, dtype: str) -> None:
    loader = LayerLoader(folder, describe_model(folder, dtype))
    frame, batches = loader.frame(CPU), several(True)
    frame.load()
    hidden = [3 * frame.embed(batch) for batch in batches]
    resident = LayerStack(loader, frame, {LAYER: loader.load_layer(LAYER, CPU)}, CPU)
    streamed = StreamedLayer(loader, frame, LAYER, CPU, per_group(loader, 2))
    for number, batch in enumerate(batches):
        streamed.route(number, batch, hidden[number])
    streamed.compute()
    for number, batch in reversed(list(enumerate(batches))):
        family = resident.check_identity(batch, hidden[number])
        assert streamed.check_identity(number, batch, hidden[number]) == family
        seen: list[list[Any]] = [[], []]
        for calls, run in (
            (seen[0], resident.run),
            (seen[1], lambda *given, number=number: streamed.run(number, *given)),
        ):
            calls.append(
                run(
                    batch,
                    hidden[number],
                    lambda point, h, calls=calls: calls.extend([point, h.clone()]),
                    lambda layer, *x, calls=calls: calls.extend([layer, *[y.clone() for y in x]]),
                )
            )
        assert len(seen[0]) == len(seen[1]) == 7
        for ours, theirs in zip(*seen, strict=True):
            assert torch.equal(ours, theirs) if isinstance(theirs, Tensor) else ours == theirs


def test_no_more_experts_are_in_memory_than_allowed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group that computes and the one that is loaded, no third."""
    loader = LayerLoader(folder, describe_model(folder))
    plain, alive, most = ExpertLoader.experts, weakref.WeakSet[Any](), [0]

    def noting(self: ExpertLoader, first: int, last: int, device: Any) -> Any:
        held = sum(p.nbytes for module in alive for p in module.parameters())
        module = plain(self, first, last, device)
        most[0] = max(most[0], held + sum(p.nbytes for p in module.parameters()))
        alive.add(module)
        return module

    monkeypatch.setattr(ExpertLoader, "experts", noting)
    frame, batches = loader.frame(CPU), several(False)
    hidden = [torch.randn(*b.input_ids.shape, loader.info.hidden) for b in batches]
    bound = per_group(loader, 1)
    assert len(list(run_streamed(loader, frame, LAYER, CPU, batches, hidden, bound))) > 1
    assert 0 < most[0] <= bound


def test_what_cannot_be_streamed(tmp_path: Path, tiny_model: Path) -> None:
    config = hf.MixtralConfig(**MOE, num_local_experts=4, num_experts_per_tok=2)
    make_model(config, tmp_path)
    info = describe_model(tmp_path)
    loader = LayerLoader(tmp_path, info)
    with pytest.raises(RequestError, match=r"needs two of its experts .* where 1000 are allowed"):
        StreamedLayer(loader, loader.frame(CPU), LAYER, CPU, 1000)
    object.__setattr__(info, "experts", "batched_mm")
    with pytest.raises(RequestError, match=r"'batched_mm' cannot be streamed.*use 'grouped_mm'"):
        StreamedLayer(LayerLoader(tmp_path, info), loader.frame(CPU), LAYER, CPU, 1 << 30)
    dense = LayerLoader(tiny_model, describe_model(tiny_model))
    with pytest.raises(RequestError, match="layer 1 has no mixture of experts"):
        ExpertLoader(dense, 1)


def test_an_expert_that_is_missing_is_found_before(tmp_path: Path) -> None:
    make_model(FAMILIES["mixtral"], tmp_path)
    (name,) = (n for n in names_of(tmp_path) if "layers.1" in n and ".experts.3.w2" in n)
    rewrite(tmp_path, lambda tensors: tensors.pop(name))
    with pytest.raises(RequestError, match=r"layers\.1\.mlp\.experts\.down_proj has shape \(7"):
        LayerLoader(tmp_path, describe_model(tmp_path))


def names_of(folder: Path) -> list[str]:
    found: list[str] = []
    rewrite(folder, found.extend)
    return found
