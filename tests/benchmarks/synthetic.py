"""Whole stores of random activations, written at the speed of the disk: no model runs.

Every task holds the same block of rows, so a store of any size takes one block's random numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from depthscope.storage.arrays import ArrayPlan, create_array, create_group
from depthscope.storage.commits import Commit, CommitLog, ShardRecord, publish_shard
from depthscope.storage.coordinates import create_coordinate
from depthscope.storage.layout import StorePaths
from depthscope.storage.run_record import GroupLayout, RunRecord
from depthscope.storage.shard_writer import write_shard
from depthscope.storage.tables import TableDocument, TableWriter
from numpy.typing import NDArray

CHUNK, DOCUMENT = 512, 128


def make_store(
    root: Path,
    *,
    layers: int,
    rows: int,
    hidden: int,
    task_rows: int = 8192,
    sublayers: bool = False,
    seed: int = 0,
) -> Path:
    """A complete store: all points in bfloat16, documents of 128 tokens.

    Stores of as many rows have the same documents and tokens. Points are related: each is a
    linear function of one hidden state of the row, with noise.
    """
    rows = rows // task_rows * task_rows
    root.mkdir(parents=True)
    _tables(root, rows)
    plans = _plans(layers, rows, hidden, task_rows, sublayers)
    create_group(root, "activations.zarr")
    create_coordinate(root, "activations.zarr/point", np.arange(layers + 1), "point")
    create_coordinate(root, "activations.zarr/layer", np.arange(layers), "layer")
    create_coordinate(root, "activations.zarr/row", np.arange(rows), "row")
    for plan in plans:
        create_array(root, plan)
    _record(layers, rows, hidden, task_rows, seed).save(root)
    blocks = {plan.path: _values(plan, task_rows, seed) for plan in plans}
    log = CommitLog(root)
    for task in range(rows // task_rows):
        shards: list[ShardRecord] = []
        for plan in plans:
            for place in range(plan.shape[0]):
                folder = StorePaths(root).attempt(task, "a")
                values = blocks[plan.path][place : place + 1]
                written = write_shard(plan, (place, task, 0), values, folder)
                shards.append(publish_shard(root, plan, (place, task, 0), written))
        span = (task * task_rows, (task + 1) * task_rows)
        log.add(Commit(task, (0, layers), span, tuple(shards)))
    return root


def stored_bytes(root: Path) -> int:
    """Bytes of a store's shards."""
    return sum(p.stat().st_size for p in root.glob("activations.zarr/*/c/**/*") if p.is_file())


def _tables(root: Path, rows: int) -> None:
    ends = np.arange(1, DOCUMENT + 1, dtype=np.int32)
    special = np.zeros(DOCUMENT, np.bool_)
    with TableWriter(StorePaths(root)) as writer:
        for number in range(rows // DOCUMENT):
            ids = (np.arange(DOCUMENT) * 7 + number * 31).astype(np.int32) % 50021
            tokens = ["x"] * DOCUMENT
            writer.add(
                TableDocument("made.jsonl", number + 1, ids, tokens, ends - 1, ends, special, None)
            )


def _plans(layers: int, rows: int, hidden: int, task_rows: int, sublayers: bool) -> list[ArrayPlan]:
    names = [("residual", "point", layers + 1)]
    if sublayers:
        names += [("attention_output", "layer", layers), ("mlp_output", "layer", layers)]
    return [
        ArrayPlan(
            path=f"activations.zarr/{name}",
            shape=(count, rows, hidden),
            dtype="bfloat16",
            dimensions=(axis, "row", "hidden"),
            chunk=(1, CHUNK, hidden),
            shard=(1, task_rows, hidden),
        )
        for name, axis, count in names
    ]


def _values(plan: ArrayPlan, rows: int, seed: int) -> NDArray[Any]:
    points, _, hidden = plan.shape
    shared = np.random.default_rng(0).standard_normal((rows, 64), np.float32)
    draw = np.random.default_rng([seed, len(plan.path)])
    out = np.empty((points, rows, hidden), ml_dtypes.bfloat16)
    for point in range(points):
        noise = draw.standard_normal((rows, hidden), np.float32)
        out[point] = shared @ draw.standard_normal((64, hidden), np.float32) + noise
    return out


def _record(layers: int, rows: int, hidden: int, task_rows: int, seed: int) -> RunRecord:
    return RunRecord(
        identity_fields={"synthetic": seed, "hidden": hidden},
        specification={"head": False},
        model={"name": f"synthetic-{hidden}", "layers": layers, "hidden": hidden,
               "tokenizer_digest": "synthetic"},
        corpus={},
        rows=rows,
        documents=rows // DOCUMENT,
        task_rows=task_rows,
        tasks=rows // task_rows,
        rows_run_twice=0,
        points=tuple(range(layers + 1)),
        groups={"activations": GroupLayout(rows, task_rows, CHUNK)},
        software={},
        created="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
