"""The trained model on real questions: every stored activation is what transformers computes."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from depthscope.jobs import ExtractSpec, extract
from depthscope.pipeline.demo_model import demo_folder

from ..conftest import needs_demo_model, shared_data
from ..reference import SlowLlama, check_close, stored

pytestmark = [pytest.mark.trained, pytest.mark.timeout(900)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parity_on_questions(dtype: str, tmp_path: Path) -> None:
    needs_demo_model()
    store = tmp_path / "store"
    extract(
        ExtractSpec(
            model="demo",
            data=(str(shared_data("gsm8k.jsonl")),),
            template="{question}\n{answer}",
            sample=6,
            seed=4,
            out=store,
            dtype=dtype,
            engine="process",
            task_rows=512,
            lens_rows="none",
        )
    )
    slow = SlowLlama(demo_folder(), getattr(torch, dtype))
    residual = stored(store, "activations.zarr/residual")
    ids = pq.read_table(store / "tokens.parquet").column("token_id").to_numpy()
    table = pq.read_table(store / "documents.parquet").to_pandas()
    assert len(table) == 6
    for first, count in zip(table.first_row, table.n_tokens, strict=True):
        points = slow.run(ids[first : first + count].tolist()).points
        check_close(residual[:, first : first + count], points, dtype)
