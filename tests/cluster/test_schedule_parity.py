"""Every family through the three schedules over a real Ray cluster of two nodes: the same store."""

from __future__ import annotations

from pathlib import Path

import pytest
from depthscope.jobs import ExtractSpec, extract
from depthscope.storage.effects import EffectsRecord

from ..jobs.processes import check_same, data_bytes
from ..jobs.test_intervene_staged import check_same as check_same_effects
from ..jobs.test_intervene_staged import sweep
from ..jobs.test_schedule_parity import SCHEDULES, resident_store
from ..pipeline.test_families import FAMILIES


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_over_two_nodes(family: str, dtype: str, ray_cluster: str, tmp_path: Path) -> None:
    batches = "sorted" if dtype == "float32" else "packed"
    given = resident_store(family, dtype, batches, tmp_path)
    expected = data_bytes(tmp_path / "resident")
    on_ray = given | {"engine": "ray", "address": ray_cluster}
    for name, chosen in (*SCHEDULES.items(), ("replicas", {"schedule": "resident"})):
        workers = {} if name == "staged" else {"workers": 2}
        extract(ExtractSpec(**on_ray, **chosen, **workers, out=tmp_path / name))
        check_same(tmp_path / name, expected)


def test_interventions_over_two_nodes(ray_cluster: str, tmp_path: Path) -> None:
    """One stage for each node of the cluster, which nobody has counted."""
    resident_store("gemma2", "bfloat16", "sorted", tmp_path)
    every = {"part": "layer,attention", "kind": "propagated,local", "splits_per_document": 1}
    sweep(tmp_path / "resident", tmp_path / "whole", schedule="resident", **every)
    on_ray = {"engine": "ray", "address": ray_cluster, "schedule": "staged", **every}
    done = sweep(tmp_path / "resident", tmp_path / "staged", **on_ray)
    assert done.committed == done.tasks > 1
    assert EffectsRecord.load(tmp_path / "staged", "sweep").request["stages"] == 2
    check_same_effects(tmp_path / "whole", tmp_path / "staged")
