"""Commits of any points: what is checked of them, and what repairing takes back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from depthscope.storage import coverage, tasks
from depthscope.storage.commits import Commit, CommitLog
from depthscope.storage.verify import verify

from .small_run import LAYERS, commit, lay_out, own_files, rewrite


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return lay_out(tmp_path / "s")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_a_store_of_whole_tasks(root: Path) -> None:
    for task in range(3):
        commit(root, task)
    found = verify(root)
    assert (found.state, found.problems) == ("complete", [])


def test_commits_of_every_kind_of_range(root: Path) -> None:
    for point in range(LAYERS + 1):
        commit(root, 0, (point, point))
    commit(root, 1, (0, 1))
    commit(root, 1, (2, 3))
    commit(root, 2, (2, 3))
    found = verify(root)
    assert (found.state, found.problems) == ("incomplete", [])
    assert (found.tasks_committed, found.tasks_begun) == (2, 1)
    commit(root, 2, (0, 3))
    assert verify(root).state == "complete"


def test_overlapping_commits_that_agree(root: Path) -> None:
    for task in range(3):
        commit(root, task, (0, 1))
        commit(root, task, (1, 2))
        commit(root, task, (0, 3))
    found = verify(root)
    assert (found.state, found.problems) == ("complete", [])


@pytest.mark.parametrize("points", [(1, 1), (1, 2), (3, 3), (0, 3)])
def test_a_commit_that_leaves_a_file_out(root: Path, points: tuple[int, int]) -> None:
    for name in own_files(1, *points):
        path = commit(root, 1, points, without=[name])
        found = verify(root)
        assert found.state == "damaged"
        assert found.problems[0].startswith(f"{path}: names no {name}: ")
        assert verify(root, repair=True).state == "incomplete"
        assert not path.exists()
        assert verify(root).problems == []


@pytest.mark.parametrize(
    "other",
    [
        "activations.zarr/residual/c/1/1/0",
        "activations.zarr/mlp_output/c/1/1/0",
        "statistics.zarr/norm/c/0/0/1",
        "activations.zarr/residual/c/0/0/0",
        "tokens.parquet",
    ],
)
def test_a_commit_that_names_what_is_not_its_own(root: Path, other: str) -> None:
    path = commit(root, 1, (0, 1), files=own_files(1, 0, 1))
    if "/c/" in other:
        commit(root, 2, (3, 3), files=[*own_files(2, 3, 3), other])
        shard = Commit.load(CommitLog(root).paths.commit(2, 3, 3)).shards[-1]
        CommitLog(root).paths.commit(2, 3, 3).unlink()
    else:
        shard = Commit.load(path).shards[0]._replace(path=other)
    rewrite(path, shards=[*Commit.load(path).shards, shard])
    before = (root / other).read_bytes()
    found = verify(root, repair=True)
    assert f"{path}: {other} is none of its shards" in found.problems[0]
    assert not path.exists()
    assert (root / other).read_bytes() == before


def test_a_true_digest_outlives_a_false_one(root: Path) -> None:
    true, false = commit(root, 1, (0, 2)), commit(root, 1, (2, 3))
    shards = Commit.load(false).shards
    assert shards[0].path == "activations.zarr/residual/c/1/1/0"
    rewrite(false, shards=[shards[0]._replace(digest="0" * 64), *shards[1:]])
    found = verify(root)
    assert found.state == "damaged"
    assert found.problems == [
        f"{false}: another commit names {shards[0].path} with its true digest: "
        "run depthscope verify --repair, then the same extract or merge again"
    ]
    verify(root, repair=True)
    assert (true.exists(), false.exists()) == (True, False)
    assert (root / shards[0].path).exists()
    assert verify(root).problems == []


@pytest.mark.parametrize("harm", [flip, Path.unlink])
def test_a_damaged_file_takes_all_its_commits_back(
    root: Path, harm: Callable[[Path], None]
) -> None:
    first, second = commit(root, 1, (0, 2)), commit(root, 1, (2, 3))
    other = commit(root, 1, (0, 1))
    shard = root / "activations.zarr/residual/c/1/1/0"
    harm(shard)
    assert len(verify(root).problems) == 2
    assert verify(root, repair=True).state == "incomplete"
    assert [path.exists() for path in (first, second, other, shard)] == [False, False, True, False]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": 2}, "task 2 does not own rows"),
        ({"task": 7}, "task 7 does not own rows"),
        ({"rows": [0, 16]}, "task 1 does not own rows"),
        ({"points": [2, 1]}, "no points 2 to 1"),
        ({"points": [0, 4]}, "no points 0 to 4"),
        ({"points": [0, 3]}, "it is the commit of task 1, points 0 to 3"),
    ],
)
def test_a_commit_of_another_place(root: Path, changes: dict[str, object], said: str) -> None:
    path = commit(root, 1, (0, 1))
    rewrite(path, **changes)
    found = verify(root)
    assert said in found.problems[0]
    assert verify(root, repair=True).state == "incomplete"
    assert not path.exists()


def test_the_plan_is_read_once_however_many_commits(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Counted(tasks.Selections):
        def __init__(self, *arguments: object) -> None:
            made.append(1)
            super().__init__(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(coverage, "Selections", Counted)
    for task in range(3):
        for point in range(LAYERS + 1):
            commit(root, task, (point, point))
    assert verify(root).state == "complete"
    assert len(made) == 1


def test_damaged_coordinates_are_a_problem_not_a_crash(root: Path) -> None:
    commit(root, 1)
    flip(root / "statistics.zarr/lens/row/c/0")
    found = verify(root)
    assert found.state == "damaged"
    assert "row coordinates cannot be read" in found.problems[0]


def test_progress_counts_commits(root: Path) -> None:
    for point in range(LAYERS + 1):
        commit(root, 0, (point, point))
    calls: list[tuple[int, int]] = []
    verify(root, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 4) for done in range(5)]
