"""Quantised checkpoints: run and marked where transformers runs them, refused by name elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from depthscope.jobs import ExtractSpec, extract
from depthscope.storage.errors import RequestError

from ..conftest import make_llama, write_jsonl
from ..reference import stored

DOCUMENTS = [list(range(3, 26)), [(5 * k) % 97 for k in range(40)]]


@pytest.fixture(scope="module")
def eight_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of width 64 whose linear layers are 8-bit numbers, as transformers saves it."""
    pytest.importorskip("bitsandbytes", reason="8-bit weights need the package bitsandbytes")
    folder = tmp_path_factory.mktemp("quantised")
    make_llama(folder / "plain", layers=3, seed=5, width=64, inner=128)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "plain",
        quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True),
        device_map={"": "cpu"},
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder / "model")
    transformers.AutoTokenizer.from_pretrained(folder / "plain").save_pretrained(folder / "model")
    return folder / "model"


def options(model: Path, folder: Path) -> dict[str, Any]:
    data = write_jsonl(folder / "ids.jsonl", [{"ids": ids} for ids in DOCUMENTS])
    return {
        "model": str(model),
        "data": (str(data),),
        "token_ids": "ids",
        "out": folder / "store",
        "engine": "process",
        "batches": "sorted",
        "batch_tokens": 1,
    }


def test_stored_is_what_transformers_computes(eight_bits: Path, tmp_path: Path) -> None:
    extract(ExtractSpec(**options(eight_bits, tmp_path)))
    record = json.loads((tmp_path / "store" / "run.json").read_text())
    assert record["model"]["quantisation"] == "bitsandbytes"
    model = transformers.AutoModel.from_pretrained(eight_bits, device_map={"": "cpu"})
    assert model.layers[0].mlp.up_proj.weight.dtype == torch.int8
    residual = stored(tmp_path / "store", "activations.zarr/residual").astype("float32")
    first = 0
    for ids in DOCUMENTS:
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        rows = slice(first, first + len(ids))
        for point, state in enumerate(states[:-1]):  # The last one has gone through the norm.
            assert (residual[point, rows] == state[0].float().numpy()).all()
        first += len(ids)


@pytest.mark.parametrize("schedule", ["sweep", "staged"])
def test_other_schedules_refuse_them(eight_bits: Path, schedule: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="quantised with bitsandbytes, which only extract"):
        extract(ExtractSpec(**options(eight_bits, tmp_path), schedule=schedule))
    assert not list((tmp_path / "store").glob("commits/*"))


def test_what_transformers_does_not_run_here(tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_model.iterdir():
        (model / file.name).symlink_to(file)
    config = json.loads((tiny_model / "config.json").read_text())
    (model / "config.json").unlink()
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match="quantised with awq, which transformers does not run"):
        extract(ExtractSpec(**options(model, tmp_path)))
    assert not (tmp_path / "store").exists()
