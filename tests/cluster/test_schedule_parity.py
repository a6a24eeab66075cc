"""Every family through the three schedules over a real Ray cluster of two nodes: the same store.

What each is compared with is one resident run in this process. The workers come from a process that
has imported everything (see `warm_workers`), and one connection to the cluster serves all cases, so
that the time goes into the schedules and not into starting Python; how workers start is the matter
of other tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from depthscope.jobs import ExtractSpec, extract
from depthscope.storage.effects import EffectsRecord

from ..conftest import two_ray_nodes
from ..jobs.processes import check_same, data_bytes
from ..jobs.test_intervene_staged import check_same as check_same_effects
from ..jobs.test_intervene_staged import sweep
from ..jobs.test_schedule_parity import SCHEDULES, resident_store
from ..pipeline.test_families import FAMILIES
from .warm_workers import warm_workers


@pytest.fixture(scope="module")
def joined() -> Iterator[str]:
    """A cluster that this process has joined: its extractions find themselves connected."""
    import ray

    with warm_workers() as settings, two_ray_nodes(**settings) as address:
        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        yield address


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_over_two_nodes(family: str, dtype: str, joined: str, tmp_path: Path) -> None:
    batches = "sorted" if dtype == "float32" else "packed"
    given = resident_store(family, dtype, batches, tmp_path)
    expected = data_bytes(tmp_path / "resident")
    on_ray = given | {"engine": "ray", "address": joined}
    for name, chosen in (*SCHEDULES.items(), ("replicas", {"schedule": "resident"})):
        workers = {} if name == "staged" else {"workers": 2}
        extract(ExtractSpec(**on_ray, **chosen, **workers, out=tmp_path / name))
        check_same(tmp_path / name, expected)


def test_interventions_over_two_nodes(joined: str, tmp_path: Path) -> None:
    """One stage for each node of the cluster, which nobody has counted."""
    resident_store("gemma2", "bfloat16", "sorted", tmp_path)
    every = {"part": "layer,attention", "kind": "propagated,local", "splits_per_document": 1}
    sweep(tmp_path / "resident", tmp_path / "whole", schedule="resident", **every)
    on_ray = {"engine": "ray", "address": joined, "schedule": "staged", **every}
    done = sweep(tmp_path / "resident", tmp_path / "staged", **on_ray)
    assert done.committed == done.tasks > 1
    assert EffectsRecord.load(tmp_path / "staged", "sweep").request["stages"] == 2
    check_same_effects(tmp_path / "whole", tmp_path / "staged")
