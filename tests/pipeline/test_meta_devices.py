"""All 126 layers of Llama-3.1-405B on the meta device, placed by accelerate and by our split."""

from __future__ import annotations

import pytest
import torch
from accelerate import infer_auto_device_map, init_empty_weights
from accelerate.utils import compute_module_sizes
from depthscope.pipeline.costs import model_costs
from depthscope.pipeline.model_configs import find_config
from depthscope.pipeline.stage_split import split_layers
from transformers import AutoModel, PreTrainedModel

GB = 10**9
#: From the published dimensions: queries and output, keys and values, MLP, two norms.
D, KV, MLP, VOCABULARY, LAYERS = 16384, 1024, 53248, 128256, 126
LAYER_BYTES = 2 * (2 * D * D + 2 * D * KV + 3 * D * MLP + 2 * D)
EMBEDDING_BYTES = 2 * VOCABULARY * D
NORM_BYTES = 2 * D


@pytest.fixture(scope="module")
def body() -> PreTrainedModel:
    config = find_config("llama-3.1-405b").config
    with init_empty_weights():
        return AutoModel.from_config(config, dtype=torch.bfloat16)


@pytest.mark.parametrize(("count", "memory"), [(16, 80 * GB), (8, 141 * GB)])
def test_accelerate_places_every_layer(body: PreTrainedModel, count: int, memory: int) -> None:
    limits = dict.fromkeys(range(count), memory)
    placed = infer_auto_device_map(
        body, max_memory=limits, no_split_module_classes=list(body._no_split_modules or [])
    )
    assert set(placed.values()) <= set(range(count))
    sizes = compute_module_sizes(body)
    used = dict.fromkeys(range(count), 0)
    for name, device in placed.items():
        used[int(device)] += sizes[name]
    assert all(total <= memory for total in used.values())
    # Rotary frequencies are buffers, which accelerate counts too.
    buffers = sum(buffer.nbytes for buffer in body.buffers())
    assert buffers < 10_000
    assert sum(used.values()) == LAYERS * LAYER_BYTES + EMBEDDING_BYTES + NORM_BYTES + buffers
    assert {f"layers.{layer}" for layer in range(LAYERS)} <= set(placed)


def test_accelerate_cannot_place_it_on_eight_of_80_gb(body: PreTrainedModel) -> None:
    limits: dict[int | str, int] = dict.fromkeys(range(8), 80 * GB)
    placed = infer_auto_device_map(
        body, max_memory=limits, no_split_module_classes=list(body._no_split_modules or [])
    )
    assert {"cpu", "disk"} & set(placed.values())


@pytest.mark.parametrize(("nodes", "count", "memory"), [(2, 8, 80 * GB), (1, 8, 141 * GB)])
def test_our_split_places_every_layer(nodes: int, count: int, memory: int) -> None:
    costs = model_costs(find_config("llama-3.1-405b").config, "bfloat16")
    flops = costs.layer_flops(2048)
    stages = nodes * count
    split = split_layers(costs.layer_bytes, flops, stages, first_bytes=EMBEDDING_BYTES)
    used = [sum(costs.layer_bytes[first:last]) for first, last in split]
    used[0] += EMBEDDING_BYTES
    assert len(split) == stages
    assert max(used) <= memory
    assert sum(used) == LAYERS * LAYER_BYTES + EMBEDDING_BYTES
    assert costs.frame_bytes == EMBEDDING_BYTES + NORM_BYTES
    # No stage may hold more than a layer above the mean.
    assert max(used) - sum(used) / stages <= LAYER_BYTES
