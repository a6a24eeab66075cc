"""Which shards belong to which commit."""

from __future__ import annotations

from pathlib import Path

import pytest
from depthscope.storage.coverage import Coverage, shards_of
from depthscope.storage.tasks import Task

from .small_run import LAYERS, lay_out, own_files, plans, record

RANGES = [(a, b) for a in range(LAYERS + 1) for b in range(a, LAYERS + 1)]


@pytest.mark.parametrize("task", [0, 1, 2])
@pytest.mark.parametrize(("first", "last"), RANGES)
def test_the_shards_of_every_range(tmp_path: Path, task: int, first: int, last: int) -> None:
    coverage = Coverage.of(lay_out(tmp_path / "s"), record())
    wanted = own_files(task, first, last)
    # Statistics, of which this store has two arrays, and lens come with the last point alone.
    assert any("statistics" in name for name in wanted) == (last == LAYERS)
    assert coverage.shards(task, first, last) == set(wanted)


def test_ranges_side_by_side_are_the_whole(tmp_path: Path) -> None:
    coverage = Coverage.of(lay_out(tmp_path / "s"), record())
    whole = coverage.shards(1, 0, LAYERS)
    for cut in range(LAYERS):
        below, above = coverage.shards(1, 0, cut), coverage.shards(1, cut + 1, LAYERS)
        assert below | above == whole
        assert not below & above


def test_a_task_of_several_shards_a_group() -> None:
    # Shards of 16 rows, and of 4 in the lens: this task owns two and three of them.
    task = Task(0, (0, 32), {"activations": (0, 32), "statistics": (0, 32), "lens": (4, 15)})
    residual, _, _, norm, _, kl, *_ = plans()
    found = shards_of([residual, norm, kl], record(), task, 3, LAYERS)
    assert found == {
        *(f"activations.zarr/residual/c/2/{k}/0" for k in (0, 1)),
        *(f"statistics.zarr/norm/c/0/0/{k}" for k in (0, 1)),
        *(f"statistics.zarr/lens/kl/c/0/{k}" for k in (1, 2, 3)),
    }
