"""Damage is found, named and mended; what is sound is left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from depthscope.jobs import ExtractSpec, extract
from depthscope.storage.verify import verify

from .processes import data_bytes


@pytest.fixture
def request_(tiny_model: Path, corpus: Path, tmp_path: Path) -> ExtractSpec:
    return ExtractSpec(
        model=str(tiny_model),
        data=(str(corpus),),
        out=tmp_path / "store",
        engine="process",
        task_rows=256,
        threads=1,
        lens_rows="4",
    )


def flip(path: Path) -> None:
    """Turn one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


SHARD = "activations.zarr/residual/c/2/1/0"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a flipped bit": (lambda s: flip(s / SHARD), SHARD),
    "a shard that is gone": (lambda s: (s / SHARD).unlink(), SHARD),
    "a shard cut short": (lambda s: (s / SHARD).write_bytes((s / SHARD).read_bytes()[:-9]), SHARD),
    "a flipped bit in a statistic": (
        lambda s: flip(s / "statistics.zarr/norm/c/0/0/2"),
        "statistics.zarr/norm/c/0/0/2",
    ),
    "a commit that is no commit": (
        lambda s: (s / "commits/000001/0-3.json").write_text("{"),
        "000001/0-3.json",
    ),
    "a commit that names no shards": (
        lambda s: _without_shards(s / "commits/000002/0-3.json"),
        "000002/0-3.json",
    ),
}


def _without_shards(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shards": []}))


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_repaired(request_: ExtractSpec, name: str) -> None:
    damage, place = DAMAGES[name]
    extract(request_)
    store = request_.out
    before = data_bytes(store)
    assert verify(store).state == "complete"
    damage(store)
    found = verify(store)
    assert found.state == "damaged"
    assert any(place in problem for problem in found.problems), found.problems
    repaired = verify(store, repair=True)
    assert repaired.state == "incomplete"
    assert repaired.tasks_committed == repaired.tasks_total - 1
    assert extract(request_).committed == 1
    assert verify(store).state == "complete"
    assert data_bytes(store) == before


def test_a_changed_token_is_found(request_: ExtractSpec) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    extract(request_)
    path = request_.out / "tokens.parquet"
    table = pq.read_table(path)
    ids = table.column("token_id").to_pylist()
    ids[57] += 1
    place = table.schema.get_field_index("token_id")
    pq.write_table(table.set_column(place, "token_id", pa.array(ids, pa.int32())), path)
    found = verify(request_.out)
    assert found.state == "damaged"
    assert "tokens differ from its digest" in found.problems[0]
    assert verify(request_.out, repair=True).state == "damaged"


def test_a_shard_without_a_commit_is_adopted_or_replaced(request_: ExtractSpec) -> None:
    extract(request_)
    store = request_.out
    before = data_bytes(store)
    for task, harm in ((0, False), (1, True)):
        (store / f"commits/{task:06d}/0-3.json").unlink()
        if harm:
            flip(store / "activations.zarr/residual/c/0/1/0")
    inode = (store / "activations.zarr/residual/c/1/0/0").stat().st_ino
    assert extract(request_).committed == 2
    assert (store / "activations.zarr/residual/c/1/0/0").stat().st_ino == inode
    assert data_bytes(store) == before
    assert verify(store).state == "complete"
