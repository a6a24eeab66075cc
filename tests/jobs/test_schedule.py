"""Which schedule `auto` takes, and how much a sweep takes on: by the plan's arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from depthscope.jobs import ExtractSpec, extract
from depthscope.jobs.prepare import prepare
from depthscope.jobs.schedule import Layout, lay_over_devices
from depthscope.storage.commits import CommitLog
from depthscope.storage.errors import RequestError

from ..conftest import make_llama
from .processes import data_bytes, request


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("schedule")
    make_llama(folder / "model", layers=8, seed=2)
    out = folder / "resident"
    return request(folder / "model", folder, out=out, task_rows=256, lens_rows="none")


def laid(options: dict[str, Any], store: Path, **changes: Any) -> Layout:
    spec = ExtractSpec(**(options | {"out": store} | changes))
    record, folder = prepare(spec)
    return lay_over_devices(spec, record, folder, record.tasks)


def test_auto_is_resident_where_the_model_fits(options: dict[str, Any], tmp_path: Path) -> None:
    assert laid(options, tmp_path / "store").schedule == "resident"


def test_auto_sweeps_where_it_does_not(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"needs ([0-9.]+) GB"):
        laid(options, tmp_path / "none", schedule="sweep", memory="1KB")
    found = laid(options, tmp_path / "store", memory="1500KB")
    assert found.schedule == "sweep"
    more = laid(options, tmp_path / "more", memory="40MB", schedule="sweep")
    assert more.tasks_at_once >= found.tasks_at_once


def test_a_store_made_by_auto_with_little_memory_is_the_same(
    options: dict[str, Any], tmp_path: Path
) -> None:
    extract(ExtractSpec(**(options | {"schedule": "resident"})))
    store = tmp_path / "store"
    extract(ExtractSpec(**(options | {"out": store, "memory": "1500KB"})))
    assert len(list(CommitLog(store).files(0))) == 8
    assert data_bytes(store) == data_bytes(options["out"])
