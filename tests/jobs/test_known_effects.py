"""Interventions on models whose effects are known beforehand, through the public commands."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from depthscope.jobs import ExtractSpec, InterveneSpec, extract, intervene
from depthscope.storage.token_table import TokenTable
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ..conftest import VOCABULARY, byte_tokenizer, sentences, write_jsonl

LAYERS = 4
#: In models so narrow, rows of a product may round otherwise in another place of the batch.
ROUNDING = 1e-6
Sweep = Callable[..., xr.Dataset]


def gpt2(**changes: Any) -> GPT2LMHeadModel:
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=24,
        n_layer=LAYERS,
        n_head=3,
        n_positions=256,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=1,
        **changes,
    )
    return GPT2LMHeadModel(config)


def llama(layers: int = LAYERS, width: int = 24) -> LlamaForCausalLM:
    torch.manual_seed(4)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 8,
        num_key_value_heads=width // 8,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def study(tmp_path: Path) -> Callable[[torch.nn.Module], tuple[Path, Sweep]]:
    """Stores a model and a corpus; gives the store and a way to sweep over it."""

    def make(model: Any) -> tuple[Path, Sweep]:
        folder, root = tmp_path / "model", tmp_path / "store"
        model.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        records: list[dict[str, object]] = [{"text": t} for t in sentences(4, seed=8)]
        data = write_jsonl(tmp_path / "corpus.jsonl", records)
        extract(
            ExtractSpec(model=str(folder), data=(str(data),), out=root, engine="process", threads=1)
        )

        def sweep(**options: Any) -> xr.Dataset:
            name = "-".join(re.findall(r"\w+", repr(tuple(options.values())))) or "plain"
            intervene(root, InterveneSpec(name=name, engine="process", threads=1, **options))
            path = root / "effects" / f"{name}.zarr"
            return xr.open_zarr(path, consolidated=False).load()

        return root, sweep

    return make


def documents(root: Path) -> list[torch.Tensor]:
    table = TokenTable(root)
    _, starts, lengths = table.document_spans()
    return [
        torch.from_numpy(table.token_ids(int(s), int(s + n)).astype(np.int64))
        for s, n in zip(starts, lengths, strict=True)
    ]


def probabilities(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids[None], use_cache=False).logits[0].softmax(-1)


def off_diagonal(values: xr.DataArray) -> np.ndarray:
    source, target = np.triu_indices(LAYERS, 1)
    return values.values[..., source, target]


def test_layers_of_constant_output_do_not_read_each_other(study: Any) -> None:
    model = gpt2()
    with torch.no_grad():
        for block in model.transformer.h:
            for projection in (block.attn.c_proj, block.mlp.c_proj):
                projection.weight.zero_()
                projection.bias.normal_()
    _, sweep = study(model)
    found = sweep(kind="propagated,local")
    effects = off_diagonal(found.effect_max)
    assert (effects[~np.isnan(effects)] == 0).all()
    assert (~np.isnan(effects)).sum() > 50


def test_linear_layers_have_the_effects_of_linear_algebra(study: Any) -> None:
    # A norm whose epsilon is far larger than any stream only takes the mean away.
    model = gpt2(activation_function="linear", layer_norm_epsilon=1e12)
    with torch.no_grad():
        for block in model.transformer.h:
            block.ln_2.weight.fill_(1e6)
            block.attn.c_proj.weight.zero_()
            block.attn.c_proj.bias.zero_()
            block.mlp.c_fc.bias.zero_()
            block.mlp.c_proj.bias.zero_()
            block.mlp.c_proj.weight.mul_(0.2)
    root, sweep = study(model)
    found = sweep(scope="all", kind="propagated,local").sel(scope="all", part="layer")
    centre = torch.eye(24, dtype=torch.float64) - 1 / 24
    weights = [
        (centre @ b.mlp.c_fc.weight.double() @ b.mlp.c_proj.weight.double()).detach()
        for b in model.transformer.h
    ]
    for place, ids in enumerate(documents(root)):
        stream = model.transformer.wte.weight[ids] + model.transformer.wpe.weight[: len(ids)]
        h = stream.detach().double()
        added = []
        for weight in weights:
            added.append(h @ weight)
            h = h + added[-1]
        for source in range(LAYERS):
            change = -added[source]
            for target in range(source + 1, LAYERS):
                norm = added[target].norm(dim=-1)
                ratio = ((change @ weights[target]).norm(dim=-1) / norm)[1:]
                near = ((added[source] @ weights[target]).norm(dim=-1) / norm)[1:]
                cell = found.isel(document=place, split=0, source=source, target=target)
                for kind, expected in (("propagated", ratio), ("local", near)):
                    got = cell.sel(kind=kind)
                    np.testing.assert_allclose(float(got.effect_max), expected.max(), rtol=1e-3)
                    np.testing.assert_allclose(float(got.effect_mean), expected.mean(), rtol=1e-3)
                if target == source + 1:
                    np.testing.assert_allclose(
                        float(cell.sel(kind="propagated").effect_max),
                        float(cell.sel(kind="local").effect_max),
                        rtol=1e-4,
                    )
                change = change + change @ weights[target]


def test_without_attention_nothing_reaches_later_positions(study: Any) -> None:
    model = llama(width=64)
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
    _, sweep = study(model)
    found = sweep(seed=1)
    future = found.sel(scope="future")
    for name in ("effect_max", "output_l2_max"):
        values = future[name].values
        assert np.nanmax(values) <= ROUNDING
        assert np.nanmedian(values) == 0
    everywhere = off_diagonal(found.effect_max.sel(scope="all").isel(split=0))
    assert (everywhere > 0).all()


def test_a_layer_of_zero_weights_has_a_zero_row(study: Any) -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
    _, sweep = study(model)
    found = sweep(kind="propagated,local")
    row = found.effect_max.isel(source=2).values
    assert np.nanmax(row) <= ROUNDING
    assert np.nanmedian(row) == 0
    assert float(found.output_l2_max.isel(source=2).max()) <= ROUNDING
    assert float(found.output_l2_max.isel(source=1).max()) > 1e-3


def output_effect(model: Any, other: Any, ids: torch.Tensor, first: int) -> float:
    distance = (probabilities(model, ids) - probabilities(other, ids)).norm(dim=-1)
    return float(distance[first:].max())


@pytest.mark.parametrize("what", ["skip", "repeat", "swap", "reverse"])
def test_programs_at_all_positions_are_models_of_other_layers(study: Any, what: str) -> None:
    """Skipped: the layer deleted. Repeated: the layer twice. Swapped, reversed: another order."""
    model = llama()
    root, sweep = study(model)
    span = {"skip": 1, "repeat": 1, "swap": 2, "reverse": 3}[what]
    found = sweep(what=what, scope="all", span=span, protect_first="no")
    plain = list(range(LAYERS))
    for source in range(LAYERS - span + 1):
        inside = plain[source : source + span]
        changed = {"skip": [], "repeat": inside * 2}.get(what, inside[::-1])
        order = plain[:source] + changed + plain[source + span :]
        other = llama()
        other.model.layers = torch.nn.ModuleList([model.model.layers[k] for k in order])
        other.model.config.num_hidden_layers = len(order)
        for place, ids in enumerate(documents(root)):
            expected = output_effect(model, other, ids, 0)
            cell = found.isel(scope=0, kind=0, part=0, document=place, split=0, source=source)
            np.testing.assert_allclose(float(cell.output_l2_max), expected, atol=2e-6)
            if span > 1:
                assert np.isnan(cell.effect_max[source : source + span - 1]).all()


def test_parallel_layers_average_what_each_makes_of_one_stream(study: Any) -> None:
    model = llama()
    root, sweep = study(model)
    found = sweep(what="parallel", scope="all", span=2, protect_first="no")

    class Averaged(torch.nn.Module):
        def __init__(self, layers: list[torch.nn.Module]) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList(layers)

        def forward(self, hidden: torch.Tensor, **rest: Any) -> torch.Tensor:
            return torch.stack([part(hidden, **rest) for part in self.parts]).mean(0)

    layers = list(model.model.layers)
    for source in range(LAYERS - 1):
        other = llama()
        averaged = Averaged(layers[source : source + 2])
        rest = layers[:source], layers[source + 2 :]
        other.model.layers = torch.nn.ModuleList([*rest[0], averaged, *rest[1]])
        other.config.num_hidden_layers = other.model.config.num_hidden_layers = LAYERS - 1
        for place, ids in enumerate(documents(root)):
            cell = found.isel(scope=0, kind=0, part=0, document=place, split=0, source=source)
            expected = output_effect(model, other, ids, 0)
            np.testing.assert_allclose(float(cell.output_l2_max), expected, atol=2e-6)


def test_further_interventions_compose(study: Any) -> None:
    """Skipping layer 1 in every branch besides: skipping 2 then is a model without 1 and 2."""
    model = llama()
    root, sweep = study(model)
    found = sweep(scope="all", protect_first="no", layers="2", also=("layer:skip:1",))
    other = llama()
    other.model.layers = torch.nn.ModuleList([model.model.layers[k] for k in (0, 3)])
    for place, ids in enumerate(documents(root)):
        cell = found.isel(scope=0, kind=0, part=0, document=place, split=0, source=2)
        expected = output_effect(model, other, ids, 0)
        np.testing.assert_allclose(float(cell.output_l2_max), expected, atol=2e-6)


def test_interventions_at_one_layer_compose(study: Any) -> None:
    """A layer that is skipped adds nothing, whatever its MLP would add otherwise."""
    _, sweep = study(llama())
    options = {"scope": "all", "layers": "1"}
    plain = sweep(**options)
    scaled = sweep(**options, also=("mlp:scale=3:1",))
    within = sweep(**options, part="mlp", also=("layer:skip:1",))
    for found in (scaled, within):
        for name in ("output_l2_max", "effect_max"):
            values = found[name].isel(scope=0, kind=0, part=0, source=1).values
            expected = plain[name].isel(scope=0, kind=0, part=0, source=1).values
            np.testing.assert_array_equal(values, expected)
    assert float(plain.output_l2_max.max()) > 1e-3


def test_two_layers_by_hand(study: Any) -> None:
    """One number, from the weights alone: layer 0 skipped at positions 1 and 2, split at 3."""
    model = llama(2)
    root, sweep = study(model)
    found = sweep(splits="3", scope="future")
    for place, ids in enumerate(documents(root)):
        cell = found.isel(scope=0, kind=0, part=0, document=place, split=0, source=0)
        if len(ids) <= 3:
            assert np.isnan(cell.effect_max).all()
            continue
        embedded = model.model.embed_tokens(ids)[None]
        after = _layer(model, 0, embedded)
        changed = after.clone()
        changed[:, 1:3] = embedded[:, 1:3]
        base, other = _layer(model, 1, after) - after, _layer(model, 1, changed) - changed
        ratio = ((base - other).norm(dim=-1) / base.norm(dim=-1))[0, 3:]
        np.testing.assert_allclose(
            float(cell.effect_max[1]), float(ratio.detach().max()), rtol=1e-3
        )


@torch.no_grad()
def _layer(model: Any, number: int, h: torch.Tensor) -> torch.Tensor:
    """A Llama layer written out: norm, rotary attention, norm, gated MLP."""
    layer, width, heads = model.model.layers[number], h.shape[1], 3
    x = _norm(h, layer.input_layernorm)
    q, k, v = (
        (x @ getattr(layer.self_attn, f"{name}_proj").weight.T)
        .view(width, heads, 8)
        .transpose(0, 1)
        for name in "qkv"
    )
    angles = torch.arange(width)[:, None] / 10000 ** (torch.arange(4) / 4)[None]
    cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))

    def turn(y: torch.Tensor) -> torch.Tensor:
        return y * cos + torch.cat([-y[..., 4:], y[..., :4]], -1) * sin

    scores = turn(q) @ turn(k).transpose(1, 2) / 8**0.5
    hidden = torch.ones(width, width).triu(1).bool()
    mixed = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
    h = h + (mixed.transpose(0, 1).reshape(1, width, 24) @ layer.self_attn.o_proj.weight.T)
    x = _norm(h, layer.post_attention_layernorm)
    gate = x @ layer.mlp.gate_proj.weight.T
    up = x @ layer.mlp.up_proj.weight.T
    return h + (gate * gate.sigmoid() * up) @ layer.mlp.down_proj.weight.T


def _norm(h: torch.Tensor, norm: Any) -> torch.Tensor:
    return h / (h.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight
