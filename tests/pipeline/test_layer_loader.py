"""A layer loaded alone equals the same layer of transformers' from_pretrained; what is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from depthscope.pipeline.description import describe_model
from depthscope.pipeline.layer_loader import LayerLoader
from depthscope.pipeline.layer_stack import LayerStack
from depthscope.storage.errors import RequestError, WorkFailed
from safetensors.torch import save_file
from torch import nn

from .checkpoints import headers, reset_dtype, rewrite, stored_bytes
from .test_families import FAMILIES, make_model
from .test_layer_stack import batch_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    make_model(FAMILIES[request.param][0], path)
    return path


def layers_of(model: nn.Module) -> list[nn.Module]:
    return list(next(m for m in model.modules() if isinstance(m, nn.ModuleList)))


def assert_same_layers(folder: Path, dtype: str) -> None:
    """Every weight and buffer, persistent or not, of every layer."""
    whole = hf.AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    loader = LayerLoader(folder, describe_model(folder, dtype))
    assert loader.layers == len(layers_of(whole))
    for layer, theirs in enumerate(layers_of(whole)):
        ours = loader.load_layer(layer, "cpu")
        for kind in ("named_parameters", "named_buffers"):
            mine, wanted = dict(getattr(ours, kind)()), dict(getattr(theirs, kind)())
            assert list(mine) == list(wanted)
            for name, tensor in wanted.items():
                assert mine[name].dtype == tensor.dtype
                assert torch.equal(mine[name], tensor)
                # A matrix product on a CPU may depend on it, in the last bit.
                assert mine[name].data_ptr() % 64 == tensor.data_ptr() % 64
        assert not ours.training
        assert not any(p.requires_grad for p in ours.parameters())
        numbers = {m.layer_idx for m in ours.modules() if hasattr(m, "layer_idx")}
        assert numbers <= {layer}
        assert loader.layer_bytes[layer] == sum(p.nbytes for p in ours.state_dict().values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_alone_is_the_layer_of_the_whole(folder: Path, dtype: str) -> None:
    assert_same_layers(folder, dtype)


def test_only_the_layer_s_own_bytes_are_read(folder: Path) -> None:
    loader = LayerLoader(folder, describe_model(folder))
    assert loader.bytes_read == 0
    path = next(name for name in ("layers", "h") if any(f"{name}.0." in n for n in headers(folder)))
    for layer in range(loader.layers):
        before = loader.bytes_read
        loader.load_layer(layer, "cpu")
        assert loader.bytes_read - before == stored_bytes(folder, f"{path}.{layer}.")
    before = loader.bytes_read
    loader.frame(CPU).load()
    assert loader.bytes_read - before == loader.frame_bytes
    assert loader.frame_bytes == stored_bytes(folder, "embed_") + stored_bytes(folder, ".wte.") + (
        stored_bytes(folder, ".wpe.")
    ) - stored_bytes(folder, "embed_out")


def moe(folder: Path) -> Any:
    make_model(FAMILIES["qwen3_moe"][0], folder)


def fused_already(folder: Path) -> None:
    """Experts as transformers 5 holds them, not one tensor each as it saves them."""
    moe(folder)
    model = hf.AutoModelForCausalLM.from_pretrained(folder)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    assert any(tensor.ndim == 3 for tensor in tensors.values())
    save_file(tensors, folder / "model.safetensors")


def in_many_files(folder: Path) -> None:
    moe(folder)
    model = hf.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 5


def of_the_base_model(folder: Path) -> None:
    torch.manual_seed(1)
    hf.AutoModel.from_config(FAMILIES["gpt_neox"][0]).save_pretrained(folder)
    assert not any(name.startswith("gpt_neox.") for name in headers(folder))


def with_more_than_is_used(folder: Path) -> None:
    make_model(FAMILIES["gpt2"][0], folder)
    more = {f"h.{k}.attn.bias": torch.ones(1, 1, 8, 8) for k in range(3)}
    rewrite(folder, lambda tensors: tensors.update(more, other=torch.ones(3)))


def stored_in(dtype: torch.dtype) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        moe(folder)
        rewrite(folder, lambda tensors: reset_dtype(tensors, dtype))

    return make


def in_mixed_dtypes(folder: Path) -> None:
    def change(tensors: Any) -> None:
        for name in list(tensors)[::2]:
            tensors[name] = tensors[name].to(torch.bfloat16)

    moe(folder)
    rewrite(folder, change)


def buffers_of_its_own(folder: Path) -> None:
    """GPT-J keeps sines in every layer, which no checkpoint holds."""
    config = hf.GPTJConfig(vocab_size=97, n_embd=64, n_layer=2, n_head=4, rotary_dim=8)
    make_model(config, folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "make",
    [
        fused_already,
        in_many_files,
        of_the_base_model,
        with_more_than_is_used,
        stored_in(torch.bfloat16),
        stored_in(torch.float16),
        stored_in(torch.float64),
        in_mixed_dtypes,
        buffers_of_its_own,
    ],
)
def test_checkpoints_of_every_kind(
    tmp_path: Path, make: Callable[[Path], None], dtype: str
) -> None:
    make(tmp_path)
    assert_same_layers(tmp_path, dtype)


def test_experts_are_read_into_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not stacked after reading, which would need twice the memory."""
    make_model(FAMILIES["mixtral"][0], tmp_path)
    loader = LayerLoader(tmp_path, describe_model(tmp_path))

    def stack(*_: Any, **__: Any) -> Any:
        raise AssertionError("tensors were stacked")

    monkeypatch.setattr(torch, "stack", stack)
    monkeypatch.setattr(torch, "cat", stack)
    loader.load_layer(0, "cpu")


def test_layers_load_while_another_computes(tmp_path: Path) -> None:
    """Four threads load; the stack's config is toggled all the while by packed batches."""
    make_model(FAMILIES["mixtral"][0], tmp_path)
    loader = LayerLoader(tmp_path, describe_model(tmp_path))
    frame, batch = loader.frame(CPU), batch_of(True)
    frame.load()
    h = frame.embed(batch)
    stack = LayerStack(loader, frame, {0: loader.load_layer(0, CPU)}, CPU)
    expected = stack.run(batch, h)
    wanted = [loader.load_layer(layer, CPU).state_dict() for layer in range(3)]
    before = loader.bytes_read
    with ThreadPoolExecutor(4) as pool:
        coming = [pool.submit(loader.load_layer, k % 3, "cpu") for k in range(24)]
        for _ in range(20):
            assert torch.equal(stack.run(batch, h), expected)
        loaded = [future.result() for future in coming]
    for k, block in enumerate(loaded):
        for name, tensor in block.state_dict().items():
            assert torch.equal(tensor, wanted[k % 3][name])
    assert loader.bytes_read - before == 8 * stored_bytes(tmp_path, ".layers.")
    modules = [m for block in (*loaded, stack.blocks[0]) for m in block.modules()]
    assert all(m.config is frame.config for m in modules if hasattr(m, "config"))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def lose_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def lose_tensor(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))


def lose_embedding(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("model.embed_tokens.weight"))


def other_width(folder: Path) -> None:
    edit(folder, intermediate_size=48)


def strange_dtype(folder: Path) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    rewrite(folder, lambda t: t.update({name: t[name].to(torch.float8_e4m3fn)}))


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        (cut_short, "header says"),
        (lose_file, "names model-00001-of-00002.safetensors, which is missing"),
        (lose_tensor, "lack 1 tensors that its config asks for (layers.1.mlp.up_proj.weight)"),
        (lose_embedding, "lack 1 tensors that its config asks for (embed_tokens.weight)"),
        (lambda folder: edit(folder, num_hidden_layers=4), "lack 9 tensors"),
        (other_width, "layers.0.mlp.down_proj.weight has shape (32, 64) where config.json asks"),
        (lambda folder: edit(folder, vocab_size=300), "embed_tokens.weight has shape (258, 32)"),
        (strange_dtype, "is stored as F8_E4M3"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_weight_is_read(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    breaks: Callable[[Path], None],
    words: str,
) -> None:
    def read(*_: Any) -> int:
        raise AssertionError("a weight was read")

    folder = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    info = describe_model(folder)
    breaks(folder)
    monkeypatch.setattr(os, "preadv", read)
    with pytest.raises(RequestError) as caught:
        LayerLoader(folder, info)
    assert words in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_used_may_be_missing(tiny_model: Path, tmp_path: Path) -> None:
    """The final norm and the head belong to others; the frame does not read them."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    rewrite(
        folder, lambda tensors: (tensors.pop("model.norm.weight"), tensors.pop("lm_head.weight"))
    )
    loader = LayerLoader(folder, describe_model(folder))
    loader.frame(CPU).load()
    assert loader.bytes_read == 258 * 32 * 4


def test_a_file_that_shrinks_meanwhile_is_work_that_failed(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    loader = LayerLoader(folder, describe_model(folder))
    os.truncate(folder / "model.safetensors", 20_000)
    with pytest.raises(WorkFailed, match=r"model.safetensors no longer reaches byte"):
        list(map(loader.load_layer, range(3), [CPU] * 3))
