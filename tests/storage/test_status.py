"""What is committed, told by names alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from depthscope.storage.commits import CommitLog
from depthscope.storage.spans import covers, joined
from depthscope.storage.status import status

from .small_run import LAYERS, commit, lay_out


@pytest.mark.parametrize(
    ("ranges", "wanted"),
    [
        ([], ()),
        ([(0, 3)], ((0, 3),)),
        ([(0, 0), (1, 1), (2, 3)], ((0, 3),)),
        ([(2, 3), (0, 1)], ((0, 3),)),
        ([(0, 2), (1, 1)], ((0, 2),)),
        ([(0, 1), (3, 5), (4, 6)], ((0, 1), (3, 6))),
    ],
)
def test_ranges_are_joined(
    ranges: list[tuple[int, int]], wanted: tuple[tuple[int, int], ...]
) -> None:
    found = joined(ranges)
    assert found == wanted
    for first in range(7):
        for last in range(first, 7):
            each = all(any(a <= p <= b for a, b in ranges) for p in range(first, last + 1))
            assert covers(found, first, last) == each


def test_counts(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "s")
    found = status(root)
    assert (found.state, found.tasks_begun, found.share_committed) == ("incomplete", 0, 0)
    commit(root, 0)
    commit(root, 2, (0, 0))
    commit(root, 2, (2, 2))
    found = status(root, running=True)
    assert found.state == "running"
    assert (found.rows_committed, found.tasks_committed, found.tasks_begun) == (16, 1, 1)
    # 16 rows with 4 points and 8 rows with 2, of 40 rows with 4 points.
    assert found.share_committed == pytest.approx((16 * 4 + 8 * 2) / (40 * 4))
    assert found.sentence == (
        "running, 16 of 40 rows, 1 of 3 tasks committed, 1 begun (50% of all points)"
    )
    commit(root, 1)
    commit(root, 2, (1, 3))
    found = status(root, running=True)
    assert (found.state, found.tasks_begun, found.share_committed) == ("complete", 0, 1)
    assert found.sentence == "complete, 40 of 40 rows, 3 of 3 tasks committed"


def test_no_commit_is_opened(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "s")
    for path in (commit(root, 0), commit(root, 1, (1, LAYERS))):
        os.truncate(path, 0)
    (root / "commits/000002").mkdir()
    (root / "commits/000001/0-0.json.swp").touch()
    log = CommitLog(root)
    assert log.spans() == {0: ((0, 3),), 1: ((1, 3),)}
    assert [log.reached(task) for task in range(3)] == [4, 0, 0]
    assert status(root).tasks_committed == 1
