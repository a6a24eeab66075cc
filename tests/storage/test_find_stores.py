"""Stores below a folder: found, counted, and named where they cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from depthscope.storage.errors import RequestError
from depthscope.storage.find_stores import find_stores

from .small_run import ROWS, commit, lay_out


def test_every_store_below_a_folder(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    whole = lay_out(tmp_path / "deep" / "er" / "whole")
    for task in range(3):
        commit(whole, task)
    half = lay_out(tmp_path / "half")
    # Two commits of one task that overlap name the same shards, which count once.
    commit(half, 0)
    commit(half, 0, (2, 3))
    lay_out(tmp_path / ".half.preparing")
    broken = lay_out(tmp_path / "zbroken")
    (broken / "run.json").write_text('{"format": 9}')
    (tmp_path / "empty").mkdir()

    found = {store.path.name: store for store in find_stores(tmp_path, lambda root: root == half)}
    assert set(found) == {"half", "zbroken", "whole"}
    assert (found["whole"].state, found["whole"].rows_committed) == ("complete", ROWS)
    shards = [p for p in whole.glob("*.zarr/**/c/**/*") if p.is_file()]
    data = [path for path in shards if path.parent.parent.name != "row"]
    assert found["whole"].bytes == sum(path.stat().st_size for path in data)
    assert found["half"].state == "running"
    assert 0 < found["half"].bytes < found["whole"].bytes
    assert found["zbroken"].state == "unreadable"
    assert "store format 9" in found["zbroken"].line
    with pytest.raises(RequestError, match="no such folder"):
        list(find_stores(tmp_path / "nowhere"))
