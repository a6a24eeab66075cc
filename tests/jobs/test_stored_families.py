"""Every family through the whole pipeline: what lies on the disk is what transformers computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from depthscope.jobs import ExtractSpec, extract

from ..conftest import write_jsonl
from ..pipeline.test_families import DOCUMENTS, FAMILIES, make_model, reference
from ..reference import check_close, stored


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored") / str(request.param)
    make_model(FAMILIES[request.param][0], folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batches", ["sorted", "packed"])
def test_stored_activations(model: Path, dtype: str, batches: str, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "ids.jsonl", [{"ids": ids} for ids in DOCUMENTS])
    extract(
        ExtractSpec(
            model=str(model),
            data=(str(data),),
            token_ids="ids",
            out=tmp_path / "store",
            dtype=dtype,
            batches=batches,
            batch_tokens=64,
            task_rows=32,
            engine="process",
            lens_rows="all",
        )
    )
    record = json.loads((tmp_path / "store" / "run.json").read_text())
    residual = stored(tmp_path / "store", "activations.zarr/residual")
    kl = stored(tmp_path / "store", "statistics.zarr/lens/kl")
    assert (kl[-1] == 0).all()
    first = 0
    for ids in DOCUMENTS:
        points, _ = reference(model, ids, getattr(torch, dtype), record["model"]["attention"])
        check_close(residual[:, first : first + len(ids)], torch.stack(points), dtype)
        first += len(ids)
