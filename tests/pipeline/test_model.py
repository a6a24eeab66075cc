"""Finding, describing and loading a model; what is refused, and with which words."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from depthscope.pipeline import demo_model
from depthscope.pipeline.description import describe_model
from depthscope.pipeline.head_export import export_head
from depthscope.pipeline.model import Body, load_body, load_tokenizer, resolve_folder
from depthscope.storage.errors import RequestError
from torch import nn

IDS = torch.arange(12).reshape(2, 6)


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Any:
    """A copy of the tiny model that a test may break."""
    return shutil.copytree(tiny_model, tmp_path / "copy")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DEPTHSCOPE_CACHE", str(tmp_path / "cache"))


def edit(path: Path, **changes: Any) -> Any:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def points_of(body: Body, **arguments: Any) -> Any:
    points = []
    body.run(IDS, lambda point, h: points.append(h.clone()), **arguments)
    return points


def test_describes_without_loading(tiny_model: Path) -> None:
    info = describe_model(tiny_model)
    assert (info.layers, info.hidden, info.vocabulary, info.context) == (3, 32, 258, 512)
    assert (info.family, info.architecture) == ("llama", "LlamaForCausalLM")
    assert (info.dtype, info.attention, info.experts) == ("float32", "sdpa", None)
    model = hf.AutoModelForCausalLM.from_pretrained(tiny_model)
    assert info.parameters == sum(p.numel() for p in model.parameters())
    assert not info.tied_embeddings
    assert describe_model(tiny_model, "bfloat16", "eager", name="x").dtype == "bfloat16"


def test_digests_follow_what_decides_the_numbers(folder: Path) -> None:
    before = describe_model(folder)
    edit(folder / "config.json", transformers_version="0")
    assert describe_model(folder) == before
    edit(folder / "config.json", rms_norm_eps=0.5)
    assert describe_model(folder).config_digest != before.config_digest
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert describe_model(folder).weights_digest != before.weights_digest
    edit(folder / "tokenizer_config.json", added="x")
    assert describe_model(folder).tokenizer_digest != before.tokenizer_digest


def break_nothing_but(name: str) -> Any:
    def breaks(folder: Path) -> Any:
        (folder / name).unlink()

    return breaks


def index_without_file(folder: Path) -> Any:
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def cut_short(folder: Path) -> Any:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-7])


def quantised(folder: Path) -> Any:
    edit(folder / "config.json", quantization_config={"quant_method": "bitsandbytes"})


def unknown_type(folder: Path) -> Any:
    edit(folder / "config.json", model_type="never_heard_of")


def remote_code(folder: Path) -> Any:
    edit(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})


def load_everything(folder: Path) -> Any:
    load_body(resolve_folder(str(folder)), describe_model(folder))
    load_tokenizer(folder)


def missing_tensor(folder: Path) -> Any:
    edit(folder / "config.json", num_hidden_layers=4)


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        (break_nothing_but("model.safetensors"), "no model.safetensors"),
        (break_nothing_but("config.json"), "no config.json"),
        (index_without_file, "names model-00001-of-00002.safetensors, which is missing"),
        (cut_short, "header says"),
        (quantised, "quantised with bitsandbytes"),
        (unknown_type, "'never_heard_of'"),
        (remote_code, "--trust-remote-code"),
        (missing_tensor, "lack 9 tensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: [p.unlink() for p in folder.glob("token*")], "has no tokenizer"),
    ],
)
def test_a_broken_folder_is_refused_in_one_line(
    folder: Path, breaks: Callable[[Path], Any], words: str
) -> None:
    breaks(folder)
    with pytest.raises(RequestError) as caught:
        load_everything(folder)
    message = str(caught.value)
    assert words in message
    assert str(folder) in message or "model type" in message
    assert "\n" not in message


def test_requests_that_cannot_be_met(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RequestError, match="unknown dtype 'float8'"):
        describe_model(tiny_model, "float8")
    with pytest.raises(RequestError, match="attention 'fancy'"):
        describe_model(tiny_model, None, "fancy")
    with pytest.raises(RequestError, match="no model folder /no/such/folder"):
        resolve_folder("/no/such/folder")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(RequestError, match=r"nobody/nothing.*hub") as caught:
        resolve_folder("nobody/nothing-at-all")
    assert "\n" not in str(caught.value)


def test_offloading_to_disk_gives_the_same_numbers(tiny_model: Path, tmp_path: Path) -> None:
    info = describe_model(tiny_model)
    plain = points_of(load_body(tiny_model, info))
    body = load_body(
        tiny_model, info, max_memory={"cpu": 40_000}, offload_folder=tmp_path / "offload"
    )
    assert "disk" in body.model.hf_device_map.values()
    for ours, theirs in zip(points_of(body), plain, strict=True):
        assert torch.equal(ours, theirs)
    body.check_identity(IDS)


def test_hooks_are_gone_afterwards_even_after_an_error(tiny_model: Path) -> None:
    body = load_body(tiny_model, describe_model(tiny_model))

    def stop(point: int, h: torch.Tensor) -> Any:
        if point == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        body.run(IDS, stop, lambda *layer: None)
    for module in body.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not any(p.requires_grad for p in body.model.parameters())
    assert not body.model.training


def test_callbacks_come_in_order(tiny_model: Path) -> None:
    calls = []
    body = load_body(tiny_model, describe_model(tiny_model))
    body.run(IDS, lambda p, h: calls.append(("point", p)), lambda n, *x: calls.append(("layer", n)))
    assert calls == [
        ("point", 0),
        *[(kind, n + (kind == "point")) for n in range(3) for kind in ("layer", "point")],
    ]


def test_a_block_that_scales_what_it_adds_is_refused(tmp_path: Path) -> None:
    config = hf.GraniteConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        residual_multiplier=0.5,
    )
    hf.GraniteForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(RequestError, match=r"'granite' cannot be captured: at layer 0.* by up to"):
        load_body(tmp_path, describe_model(tmp_path))


def test_a_family_whose_block_changes_is_refused_on_the_first_batch(tiny_model: Path) -> None:
    body = load_body(tiny_model, describe_model(tiny_model))
    body.check_identity(IDS)
    body.model.layers[1].mlp.register_forward_hook(lambda module, args, out: out * 1.01)
    body.check_identity(IDS)  # the hook above is what the block adds, too
    body.model.layers[1].register_forward_hook(lambda module, args, out: out * 1.01)
    with pytest.raises(RequestError, match="'llama' cannot be captured: at layer 1"):
        body.check_identity(IDS)


HEADS = {
    "llama": hf.LlamaConfig,
    "tied": lambda **k: hf.LlamaConfig(**k, tie_word_embeddings=True),
    "gemma2": lambda **k: hf.Gemma2Config(
        **k, final_logit_softcapping=2.0, head_dim=16, num_key_value_heads=2
    ),
    "gpt2": hf.GPT2Config,
    "gpt_neox": hf.GPTNeoXConfig,
    "phi": hf.PhiConfig,
    "cohere": lambda **k: hf.CohereConfig(**k, logit_scale=0.25),
    "granite": lambda **k: hf.GraniteConfig(**k, logits_scaling=4.0),
    "olmo2": hf.Olmo2Config,
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exported_head_gives_the_model_s_logits(tmp_path: Path, name: str, dtype: Any) -> None:
    """norm(h) then logits in NumPy from the head alone, against transformers' own logits."""
    config = HEADS[name](
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=0,
    )
    torch.manual_seed(1)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
            parameter.copy_(parameter.to(getattr(torch, dtype)))
        model.save_pretrained(tmp_path)
        logits = model(IDS).logits.double().numpy()
        base = model.base_model
        for norm in ("norm", "ln_f", "final_layer_norm", "final_layernorm"):
            if hasattr(base, norm):
                setattr(base, norm, nn.Identity())
        h = base(IDS).last_hidden_state.double().numpy()
    head = export_head(tmp_path, describe_model(tmp_path, dtype))
    if head.norm == "layernorm":
        h = h - h.mean(-1, keepdims=True)
    normed = h / np.sqrt((h**2).mean(-1, keepdims=True) + head.epsilon) * head.weight
    normed = normed if head.norm_bias is None else normed + head.norm_bias
    ours = normed @ head.unembedding.astype(np.float64).T
    ours = head.scale * (ours if head.bias is None else ours + head.bias.astype(np.float64))
    ours = ours if head.soft_cap is None else head.soft_cap * np.tanh(ours / head.soft_cap)
    np.testing.assert_allclose(ours, logits, rtol=1e-4, atol=1e-4)
    assert head.unembedding.dtype.name == dtype


def test_a_head_that_is_more_is_refused(folder: Path) -> None:
    edit(folder / "config.json", lm_head_multiplier=3.0)
    with pytest.raises(RequestError, match="lm_head_multiplier"):
        export_head(folder, describe_model(folder))


def test_two_processes_may_convert_the_demo_model_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are made to convert before either publishes; one conversion remains, whole."""
    source = tmp_path / "model.gguf"
    source.write_bytes(b"weights")
    together = threading.Barrier(2, timeout=60)

    def convert(source: Path, folder: Path) -> Any:
        (folder / "config.json").write_text("{}")
        together.wait()

    monkeypatch.setattr(demo_model, "_packaged_file", lambda: source)
    monkeypatch.setattr(demo_model, "_convert", convert)
    with ThreadPoolExecutor(2) as pool:
        found = set(pool.map(lambda _: demo_model.demo_folder(tmp_path / "cache"), range(2)))
    (folder,) = found
    assert list((tmp_path / "cache" / "models").iterdir()) == [folder]
    assert (folder / "config.json").read_text() == "{}"
    assert demo_model.demo_folder(tmp_path / "cache") == folder


def test_a_conversion_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(b"weights")

    def convert(source: Path, folder: Path) -> Any:
        (folder / "config.json").write_text("{}")
        raise MemoryError

    monkeypatch.setattr(demo_model, "_packaged_file", lambda: source)
    monkeypatch.setattr(demo_model, "_convert", convert)
    with pytest.raises(MemoryError):
        demo_model.demo_folder(tmp_path / "cache")
    assert not list((tmp_path / "cache" / "models").iterdir())
