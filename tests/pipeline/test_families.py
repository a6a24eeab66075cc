"""Every family's captured stream against transformers' own forward of the single document.

The reference functions below use transformers and torch alone. The reference for what attention
and the MLP add takes differences in float64 around the stream in the middle of the block, which it
sees as the input of another module than the ones that are captured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from depthscope.pipeline.description import describe_model
from depthscope.pipeline.model import Body, load_body
from torch import nn

SIZE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GATED = {**SIZE, "num_key_value_heads": 2, "intermediate_size": 64, "pad_token_id": 0}
GEMMA = {**GATED, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}
MOE = {**GATED, "num_experts_per_tok": 2}

# name: (config, the module of a layer whose input is h + a)
FAMILIES = {
    "llama": (hf.LlamaConfig(**GATED), "post_attention_layernorm"),
    "mistral": (hf.MistralConfig(**GATED, sliding_window=8), "post_attention_layernorm"),
    "qwen2": (
        hf.Qwen2Config(**GATED, use_sliding_window=True, sliding_window=8, max_window_layers=1),
        "post_attention_layernorm",
    ),
    "qwen3": (hf.Qwen3Config(**GATED, head_dim=16), "post_attention_layernorm"),
    "olmo2": (hf.Olmo2Config(**GATED), "mlp"),
    "gemma2": (hf.Gemma2Config(**GEMMA), "pre_feedforward_layernorm"),
    "gemma3_text": (
        hf.Gemma3TextConfig(**GEMMA, sliding_window_pattern=2),
        "pre_feedforward_layernorm",
    ),
    "phi3": (hf.Phi3Config(**GATED, sliding_window=8), "post_attention_layernorm"),
    "gpt2": (hf.GPT2Config(**SIZE), "ln_2"),
    "gpt_neox": (
        hf.GPTNeoXConfig(**SIZE, intermediate_size=64, use_parallel_residual=False),
        "post_attention_layernorm",
    ),
    "gpt_neox_parallel": (
        hf.GPTNeoXConfig(**SIZE, intermediate_size=64, use_parallel_residual=True),
        None,
    ),
    "mixtral": (hf.MixtralConfig(**MOE, num_local_experts=4), "post_attention_layernorm"),
    "qwen3_moe": (
        hf.Qwen3MoeConfig(
            **MOE, num_experts=4, moe_intermediate_size=32, head_dim=16, mlp_only_layers=[1]
        ),
        "post_attention_layernorm",
    ),
    # Not in the table: found by the names of their modules.
    "stablelm": (hf.StableLmConfig(**GATED), "post_attention_layernorm"),
    "stablelm_parallel": (hf.StableLmConfig(**GATED, use_parallel_residual=True), None),
    "olmo3": (hf.Olmo3Config(**GATED, sliding_window=8), "mlp"),
}
DOCUMENTS = [list(range(3, 26)), [7, 7, 8], [(5 * k) % 97 for k in range(40)], [11]]


def make_model(config: Any, folder: Path) -> Any:
    """A checkpoint with random weights, biases and norms that all matter."""
    torch.manual_seed(3)
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    config, middle = FAMILIES[name]
    make_model(config, folder)
    return folder, middle


def reference(folder: Path, ids: Any, dtype: Any, attention: str, middle: str | None = None) -> Any:
    """Points 0..L and, where `middle` names a module, the stream between attention and MLP."""
    # grouped_mm, the experts' default, knows no float64.
    experts = {"experts_implementation": "eager"} if dtype == torch.float64 else {}
    model = hf.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention, **experts
    ).eval()
    base = model.base_model
    layers = base.h if hasattr(base, "h") else base.layers
    for name in ("norm", "ln_f", "final_layer_norm"):
        if hasattr(base, name):
            setattr(base, name, nn.Identity())
    between = []
    if middle is not None:
        for layer in layers:
            getattr(layer, middle).register_forward_pre_hook(
                lambda module, args: between.append(args[0].clone())
            )
    with torch.no_grad():
        out = base(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    points = [*out.hidden_states[: len(layers)], out.last_hidden_state]
    return [p[0] for p in points], [b[0] for b in between]


def captured(body: Body, ids: Any, position_ids: torch.Tensor | None = None) -> Any:
    points, layers = [], []
    body.run(
        torch.as_tensor(ids),
        lambda point, h: points.append(h.clone()),
        lambda layer, h, a, m: layers.append((h.clone(), a.clone(), m.clone())),
        position_ids=position_ids,
    )
    return points, layers


def load(folder: Path, dtype: Any = "float32", attention: str = "auto") -> Any:
    info = describe_model(folder, dtype, attention)
    return load_body(folder, info)


def row_errors(x: torch.Tensor, y: torch.Tensor) -> Any:
    x, y = x.double(), y.double()
    return (x - y).norm(dim=-1) / y.norm(dim=-1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_shape_is_bit_equal(family: tuple[Path, str | None], dtype: Any) -> None:
    folder, middle = family
    body = load(folder, dtype)
    ids = DOCUMENTS[2]
    points, layers = captured(body, [ids])
    expected, between = reference(folder, ids, getattr(torch, dtype), body.info.attention, middle)
    assert len(points) == len(expected) == body.info.layers + 1
    for ours, theirs in zip(points, expected, strict=True):
        assert ours.dtype == getattr(torch, dtype)
        assert torch.equal(ours[0], theirs)
    for (h, a, _), theirs, point in zip(layers, between, points[:-1], strict=False):
        assert torch.equal(h, point)
        assert torch.equal((h + a)[0], theirs)
    body.check_identity(torch.tensor([ids]))


def test_sublayers_against_float64(family: tuple[Path, str | None]) -> None:
    folder, middle = family
    body = load(folder)
    _, layers = captured(body, [DOCUMENTS[2]])
    points, between = reference(folder, DOCUMENTS[2], torch.float64, body.info.attention, middle)
    if middle is None:
        between = [h + a for h, a in zip(points, parallel_attention(folder, points), strict=False)]
    for layer, (_, a, m) in enumerate(layers):
        assert row_errors(a[0], between[layer] - points[layer]).max() < 1e-5
        assert row_errors(m[0], points[layer + 1] - between[layer]).max() < 1e-5


def parallel_attention(folder: Path, points: Any) -> Any:
    """What attention adds in a parallel block: the block's addition less the MLP's, in float64."""
    model = hf.AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    added = []
    with torch.no_grad():
        for layer, h, after in zip(model.layers, points[:-1], points[1:], strict=True):
            norm = getattr(layer, "post_attention_layernorm", None) or layer.input_layernorm
            added.append(after - h - layer.mlp(norm(h[None]))[0])
    return added


def batches() -> Any:
    """Padded and packed batches of DOCUMENTS: ids, positions, and each document's places."""
    width = max(map(len, DOCUMENTS))
    padded = torch.full((len(DOCUMENTS), width), 5)
    for row, ids in enumerate(DOCUMENTS):
        padded[row, : len(ids)] = torch.tensor(ids)
    yield padded, None, [(row, slice(0, len(ids))) for row, ids in enumerate(DOCUMENTS)]
    packed = torch.tensor([[token for ids in DOCUMENTS for token in ids] + [5, 5]])
    positions = torch.tensor([[k for ids in DOCUMENTS for k in range(len(ids))] + [0, 0]])
    starts = [sum(map(len, DOCUMENTS[:k])) for k in range(len(DOCUMENTS))]
    places = [(0, slice(s, s + len(ids))) for s, ids in zip(starts, DOCUMENTS, strict=True)]
    yield packed, positions, places


@pytest.mark.parametrize("kind", ["padded", "packed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_document_does_not_depend_on_its_batch(
    family: tuple[Path, str | None], dtype: Any, kind: str
) -> None:
    folder, _ = family
    body = load(folder, dtype)
    ids, positions, places = list(batches())[kind == "packed"]
    points, layers = captured(body, ids, positions)
    for document, (row, part) in enumerate(places):
        expected, _ = reference(
            folder, DOCUMENTS[document], getattr(torch, dtype), body.info.attention
        )
        _, alone = captured(body, [DOCUMENTS[document]])
        pairs = [(points[k][row, part], expected[k]) for k in range(len(points))]
        for ours, theirs in zip(layers, alone, strict=True):
            pairs += [(x[row, part], y[0]) for x, y in zip(ours[1:], theirs[1:], strict=True)]
        for ours, theirs in pairs:
            if dtype == "float32":
                assert row_errors(ours, theirs).max() <= 1e-5
            else:
                assert row_errors(ours.flatten(), theirs.flatten()) <= 2e-2


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_sliding_windows_hold_inside_packed_documents(tmp_path: Path, attention: str) -> None:
    """A window of 8 changes a document of 40 tokens, so a mask without it would be noticed."""
    make_model(FAMILIES["mistral"][0], tmp_path)
    windowed = load(tmp_path, attention=attention)
    _, (ids, positions, places) = batches()
    points, _ = captured(windowed, ids, positions)
    row, part = places[2]
    expected, _ = reference(tmp_path, DOCUMENTS[2], torch.float32, attention)
    assert row_errors(points[-1][row, part], expected[-1]).max() <= 1e-5
    windowed.model.config.sliding_window = None
    without, _ = captured(windowed, ids, positions)
    assert row_errors(without[-1][row, part], expected[-1]).max() > 1e-2
