"""Every family through the three schedules, in this process: the same store, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from depthscope.jobs import ExtractSpec, extract

from ..conftest import write_jsonl
from ..pipeline.test_families import DOCUMENTS, FAMILIES, make_model
from .processes import check_same, data_bytes

SCHEDULES: dict[str, dict[str, Any]] = {
    "sweep": {"schedule": "sweep"},
    "staged": {"schedule": "staged", "stages": 2},
}


def resident_store(family: str, dtype: str, batches: str, folder: Path) -> dict[str, Any]:
    """Make a model of this family and its store ``folder/resident``; the options, less ``out``."""
    make_model(FAMILIES[family][0], folder / "model")
    data = write_jsonl(folder / "ids.jsonl", [{"ids": ids} for ids in DOCUMENTS])
    given: dict[str, Any] = {
        "model": str(folder / "model"),
        "data": (str(data),),
        "token_ids": "ids",
        "dtype": dtype,
        "batches": batches,
        "batch_tokens": 32,
        "task_rows": 48,
        "engine": "process",
        "lens_rows": "all",
        "sublayers": True,
        "threads": 1,
    }
    extract(ExtractSpec(**given, out=folder / "resident", schedule="resident"))
    return given


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_this_process(family: str, dtype: str, tmp_path: Path) -> None:
    batches = "packed" if dtype == "float32" else "sorted"
    given = resident_store(family, dtype, batches, tmp_path)
    expected = data_bytes(tmp_path / "resident")
    for name, chosen in (*SCHEDULES.items(), ("three", {"schedule": "staged", "stages": 3})):
        extract(ExtractSpec(**given, **chosen, out=tmp_path / name))
        check_same(tmp_path / name, expected)
