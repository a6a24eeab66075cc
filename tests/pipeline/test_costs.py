"""Parameters and FLOPs from configs: published totals, hand counts, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from depthscope.pipeline.costs import ModelCosts, attended, model_costs
from depthscope.pipeline.model_configs import find_config, published_names
from depthscope.storage.errors import RequestError
from transformers import GPT2Config, LlamaConfig, MixtralConfig

#: Parameters, as the models' repositories and reports give them.
PUBLISHED = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "olmo-2-7b": 7_298_617_344,
    "olmo-2-13b": 13_716_198_400,
    "olmo-2-32b": 32_234_279_936,
    "gemma-3-1b": 999_885_952,
    # Embedding and other parameters of the technical report's table, without the vision tower.
    "gemma-3-4b": 675_000_000 + 3_209_000_000,
    "gemma-3-12b": 1_012_000_000 + 10_759_000_000,
    "gemma-3-27b": 1_416_000_000 + 25_600_000_000,
    # The main model; 14,848 of the published 671,026,419,200 are routing biases, kept as buffers.
    "deepseek-v3": 671_026_419_200,
}
EXACT = {name for name in PUBLISHED if not name.startswith(("gemma-3-", "deepseek"))}


def costs_of(name: str) -> ModelCosts:
    found = find_config(name)
    return model_costs(found.config, found.dtype, name=found.name)


def test_every_published_config_is_checked() -> None:
    assert set(PUBLISHED) == set(published_names())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals(name: str) -> None:
    found = costs_of(name)
    tolerance = 0 if name in EXACT else 0.001 * PUBLISHED[name]
    assert abs(found.parameters - PUBLISHED[name]) <= tolerance
    assert found.dtype == "bfloat16"
    assert found.itemsize == 2


@pytest.mark.parametrize(
    ("name", "active"), [("qwen3-30b-a3b", 3.3e9), ("qwen3-235b-a22b", 22e9), ("deepseek-v3", 37e9)]
)
def test_active_parameters_of_mixtures(name: str, active: float) -> None:
    """As published: what a token uses, embedding and (untied) head included."""
    found = costs_of(name)
    used = sum(layer.used for layer in found.layers) + 2 * found.vocabulary * found.hidden
    assert used == pytest.approx(active, rel=0.03)


@pytest.mark.parametrize(
    ("name", "gflops", "rate", "bytes_per_token", "produced"),
    [
        ("llama-3.1-8b", 14.5, 272.9e3, 270e3, 73.8),
        ("llama-3.1-70b", 139.6, 28.3e3, 1.33e6, 37.6),
        ("llama-3.1-405b", 811.7, 4.87e3, 4.16e6, 20.3),
    ],
)
def test_the_facts_of_the_design(
    name: str, gflops: float, rate: float, bytes_per_token: float, produced: float
) -> None:
    """8×H100 at 50% of 989 TFLOP/s, 2,048-token documents, all points in bfloat16."""
    found = costs_of(name)
    flops = found.flops(2048)
    assert flops / 1e9 == pytest.approx(gflops, rel=0.003)
    tokens_per_second = 8 * 0.5 * 989e12 / flops
    assert tokens_per_second == pytest.approx(rate, rel=0.002)
    size = (len(found.layers) + 1) * found.point_bytes()
    assert size == pytest.approx(bytes_per_token, rel=0.003)
    assert tokens_per_second * size / 1e9 == pytest.approx(produced, rel=0.003)


def test_a_tiny_llama_by_hand() -> None:
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=8,
        intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    found = model_costs(config, "float32")
    # Queries and output 8×8, keys and values 8×4, three of 8×20, two norms of 8.
    layer = 2 * 64 + 2 * 32 + 3 * 160 + 2 * 8
    assert [costs.parameters for costs in found.layers] == [layer] * 3
    assert found.frame == 100 * 8 + 8
    assert found.parameters == 3 * layer + 2 * 100 * 8 + 8
    assert found.layer_bytes == [4 * layer] * 3
    assert found.frame_bytes == 4 * (800 + 8)
    assert found.inner == 20
    # 4 heads of 2: queries against 5 of 10 positions on average, and as much for the values.
    assert found.flops(10) == 3 * (2 * layer + 5 * (2 * 8 + 2 * 8))


def test_a_tiny_mixture_by_hand() -> None:
    config = MixtralConfig(
        vocab_size=50,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        num_experts_per_tok=1,
        sliding_window=6,
    )
    layer = model_costs(config, "bfloat16").layers[0]
    shared, expert = 2 * 64 + 2 * 32 + 4 * 8 + 2 * 8, 3 * 8 * 16
    assert layer.parameters == shared + 4 * expert
    assert layer.used == shared + expert
    assert layer.window == 6


def test_old_names_of_config_fields() -> None:
    found = model_costs(GPT2Config(n_embd=8, n_head=2, n_layer=2, vocab_size=30), "float32")
    assert found.inner == 32
    assert found.layers[0].window is None
    assert found.layers[0].mixing == 2 * 2 * 8


def test_windows_bound_attention() -> None:
    """Against counting every pair of positions of one document."""

    def pairs(tokens: int, window: int | None) -> float:
        seen = [min(place + 0.5, window or tokens) for place in range(tokens)]
        return sum(seen) / tokens

    for tokens, window in ((100, None), (100, 200), (100, 100), (100, 10), (1000, 512)):
        assert attended(tokens, window) == pytest.approx(pairs(tokens, window), rel=1e-3)


def test_gemma_alternates_windows() -> None:
    found = costs_of("gemma-3-27b")
    assert [layer.window for layer in found.layers[:7]] == [1024] * 5 + [None, 1024]
    assert found.layers[0].flops(1024) == found.layers[5].flops(1024)
    assert found.layers[0].flops(8192) < found.layers[5].flops(8192)


@pytest.mark.parametrize(
    "name", ["LLAMA-3.1-405B", "meta-llama/Llama-3.1-405B", "Meta-Llama/llama-3.1-405b-instruct"]
)
def test_names_in_any_case_and_of_the_hub(name: str) -> None:
    assert find_config(name).name == "llama-3.1-405b"


def test_weights_that_are_published_quantised_are_named() -> None:
    assert "quantised with fp8" in find_config("deepseek-v3").note
    assert not find_config("llama-3.1-8b").note


def write_config(folder: Path, **changed: object) -> Path:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    ).to_dict()
    (folder / "config.json").write_text(json.dumps(config | changed))
    return folder


def test_a_folder_needs_nothing_but_its_config(tmp_path: Path) -> None:
    found = find_config(str(write_config(tmp_path, dtype="float16")))
    assert found.folder == tmp_path
    assert found.dtype == "float16"
    assert len(model_costs(found.config, found.dtype).layers) == 2
    assert find_config(str(tmp_path), "float32").dtype == "float32"


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="demo, llama-3"):
        find_config("./nowhere")
    with pytest.raises(RequestError, match=r"no config\.json"):
        find_config(str(tmp_path))
    write_config(tmp_path, quantization_config={"quant_method": "fp8"})
    with pytest.raises(RequestError, match="quantised with fp8"):
        find_config(str(tmp_path))
    write_config(tmp_path)
    with pytest.raises(RequestError, match="unknown dtype 'int8'"):
        find_config(str(tmp_path), "int8")
