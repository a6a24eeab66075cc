"""The way from device to host that GPUs use, driven on the CPU: the same store, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from depthscope.jobs import ExtractSpec, extract
from depthscope.jobs.process_pool import ProcessPool
from depthscope.pipeline.equipment import WorkerSettings
from depthscope.pipeline.staging import HostStaging
from depthscope.pipeline.worker import Worker

from ..conftest import write_jsonl
from .processes import data_bytes


def staged(settings: WorkerSettings) -> Worker:
    worker = Worker(settings)
    worker.equipment.staging = HostStaging()
    return worker


@pytest.mark.parametrize("rows", ["all", "position % 3 = 1"])
@pytest.mark.parametrize("batches", ["sorted", "packed"])
def test_staged_rows_are_the_same(
    tiny_model: Path, tmp_path: Path, rows: str, batches: str
) -> None:
    records: list[dict[str, object]] = [
        {"ids": [2 + (i * j) % 200 for j in range(3 + 7 * i % 50)]} for i in range(40)
    ]
    records[11]["ids"] = [4, 5, 99_999]
    data = write_jsonl(tmp_path / "ids.jsonl", records)
    options: dict[str, Any] = {
        "model": str(tiny_model),
        "data": (str(data),),
        "token_ids": "ids",
        "engine": "process",
        "threads": 1,
        "task_rows": 128,
        "batch_tokens": 64,
        "sublayers": True,
        "rows": rows,
        "batches": batches,
        "on_error": "skip",
    }
    extract(ExtractSpec(**options, out=tmp_path / "direct"))
    extract(
        ExtractSpec(**options, out=tmp_path / "staged"),
        pool=lambda settings, spec: ProcessPool(settings, staged),
    )
    assert data_bytes(tmp_path / "staged") == data_bytes(tmp_path / "direct")
