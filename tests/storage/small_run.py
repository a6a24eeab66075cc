"""Small whole stores whose commits are made by hand, for any task and any points.

3 layers, 40 rows in 5 documents, tasks of 16 rows; every value is random, and of one task and array
always the same, so that a shard that is written twice has the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from depthscope.storage.arrays import ArrayPlan, create_array
from depthscope.storage.commits import Commit, CommitLog, ShardRecord, publish_shard
from depthscope.storage.coordinates import create_coordinate
from depthscope.storage.layout import StorePaths
from depthscope.storage.run_record import GroupLayout, RunRecord
from depthscope.storage.shard_writer import write_shard
from depthscope.storage.tables import TableDocument, TableWriter

LAYERS, ROWS, TASK_ROWS = 3, 40, 16
LENGTHS = (10, 3, 12, 1, 14)
POINTS = (0, 2, 3)
#: The rows that have lens values: task 0 owns the shard of the first four, task 1 that of the
#: others, task 2 none.
LENS_ROWS = (2, 9, 17, 19, 20, 21, 22, 33)
LENS = ("kl", "top5_overlap", "top1_agreement", "entropy", "next_rank", "next_probability")

GROUPS = {
    "activations": GroupLayout(ROWS, TASK_ROWS, 8),
    "statistics": GroupLayout(ROWS, TASK_ROWS, 8),
    "lens": GroupLayout(len(LENS_ROWS), 4, 4),
}


def plans() -> list[ArrayPlan]:
    wide = ("row", "hidden")
    found = [
        ArrayPlan(
            f"activations.zarr/{name}",
            (count, ROWS, 4),
            "float32",
            (axis, *wide),
            (1, 8, 4),
            (1, TASK_ROWS, 4),
        )
        for name, axis, count in (
            ("residual", "point", len(POINTS)),
            ("attention_output", "layer", LAYERS),
            ("mlp_output", "layer", LAYERS),
        )
    ]
    for name, axis, count in (("norm", "quantity", 5), ("norm_ratio", "part", 3)):
        found.append(
            ArrayPlan(
                f"statistics.zarr/{name}",
                (count, LAYERS, ROWS),
                "float32",
                (axis, "layer", "row"),
                (1, LAYERS, 8),
                (count, LAYERS, TASK_ROWS),
            )
        )
    for name in LENS:
        found.append(
            ArrayPlan(
                f"statistics.zarr/lens/{name}",
                (LAYERS + 1, len(LENS_ROWS)),
                "float32",
                ("point", "row"),
                (LAYERS + 1, 4),
                (LAYERS + 1, 4),
            )
        )
    return found


def record(**changes: Any) -> RunRecord:
    made = RunRecord(
        identity_fields={"weights": "w"},
        specification={"head": False},
        model={"layers": LAYERS},
        corpus={},
        rows=ROWS,
        documents=len(LENGTHS),
        task_rows=TASK_ROWS,
        tasks=3,
        rows_run_twice=0,
        points=POINTS,
        groups=GROUPS,
        software={},
        created="2026-01-01T00:00:00+00:00",
    )
    return replace(made, **changes)


def lay_out(root: Path) -> Path:
    """A store with everything but data."""
    root.mkdir()
    with TableWriter(StorePaths(root)) as writer:
        for number, length in enumerate(LENGTHS):
            ids = np.arange(length, dtype=np.int32) + number
            texts = [str(i) for i in ids]
            special = np.zeros(length, np.bool_)
            writer.add(TableDocument("c.jsonl", number + 1, ids, texts, ids, ids, special, "text"))
    rows = np.array(LENS_ROWS, np.int64)
    create_coordinate(root, "statistics.zarr/lens/row", rows, "row")
    for plan in plans():
        create_array(root, plan)
    record().save(root)
    return root


def commit(
    root: Path,
    task: int,
    points: tuple[int, int] = (0, LAYERS),
    *,
    files: Sequence[str] | None = None,
    without: Sequence[str] = (),
) -> Path:
    """Write and commit a task's shards of a range of points; ``files`` names others instead."""
    names = own_files(task, *points) if files is None else files
    shards = tuple(_write(root, task, name) for name in names if name not in without)
    rows = (task * TASK_ROWS, min(ROWS, (task + 1) * TASK_ROWS))
    log = CommitLog(root)
    assert log.add(Commit(task, points, rows, shards))
    return log.paths.commit(task, *points)


def rewrite(path: Path, **changes: Any) -> None:
    """Change what a commit says."""
    content = asdict(Commit.load(path)) | changes
    content["shards"] = [list(shard) for shard in content["shards"]]
    path.write_text(json.dumps(content))


def own_files(task: int, first: int, last: int) -> list[str]:
    """The files of a task and points, spelled out one by one."""
    names = []
    for place, point in enumerate(POINTS):
        if first <= point <= last:
            names.append(f"activations.zarr/residual/c/{place}/{task}/0")
    for name in ("attention_output", "mlp_output"):
        for layer in range(LAYERS):
            if first <= layer + 1 <= last:
                names.append(f"activations.zarr/{name}/c/{layer}/{task}/0")
    if first <= LAYERS <= last:
        names += [f"statistics.zarr/{name}/c/0/0/{task}" for name in ("norm", "norm_ratio")]
        if task < 2:
            names += [f"statistics.zarr/lens/{name}/c/0/{task}" for name in LENS]
    return names


def _write(root: Path, task: int, file: str) -> ShardRecord:
    path, _, place = file.partition("/c/")
    plan = next(plan for plan in plans() if plan.path == path)
    index = tuple(map(int, place.split("/")))
    random = np.random.default_rng([ord(letter) for letter in file])
    values = random.normal(size=plan.shard_shape(index)).astype(np.float32)
    written = write_shard(plan, index, values, StorePaths(root).attempt(task, "a"))
    return publish_shard(root, plan, index, written)
