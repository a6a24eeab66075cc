"""Our extraction, held in one process: the store is laid out once, its tasks run again and again.

The tasks go through the very worker and pipeline that the engines use: two in flight, one computing
while the other is encoded, written, flushed, published and committed. Between samples the commits
and shards are removed.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from depthscope.jobs.dispatch import IN_FLIGHT
from depthscope.jobs.prepare import prepare
from depthscope.jobs.spec import ExtractSpec
from depthscope.pipeline.batches import Batch
from depthscope.pipeline.equipment import WorkerSettings
from depthscope.pipeline.packing import attention_by_segment
from depthscope.pipeline.part import TaskNumbers
from depthscope.pipeline.task_windows import task_windows
from depthscope.pipeline.worker import Worker
from depthscope.storage.commits import Commit
from depthscope.storage.tasks import Task
from findings import BenchmarkFailed
from scale import Setting
from transformers import AutoModel


@dataclass(frozen=True)
class Sample:
    """One pass over all tasks.

    Attributes
    ----------
    seconds
        From the start to the last commit.
    steady_seconds, steady_rows
        From the first commit to the last but one, and the rows run for the tasks in between: each
        was computed while its predecessor was written, and written while its successor was
        computed, as it goes on for as long as a corpus lasts. (Up to the last commit it would
        flatter: nothing is computed while the last task is written.)
    rows
        Rows run, those run twice included.
    kinds
        Seconds by kind of work, over all tasks.
    """

    seconds: float
    steady_seconds: float
    steady_rows: int
    rows: int
    kinds: dict[str, float]

    @classmethod
    def of(cls, commits: Sequence[Commit], seconds: float) -> Sample:
        finished = [float(commit.timings["finished"]) for commit in commits]
        kinds = [name for name in commits[0].timings if name not in ("started", "finished")]
        return cls(
            seconds=seconds,
            steady_seconds=finished[-2] - finished[0],
            steady_rows=sum(commit.rows_run for commit in commits[1:-1]),
            rows=sum(commit.rows_run for commit in commits),
            kinds={kind: sum(float(c.timings[kind]) for c in commits) for kind in kinds},
        )

    @property
    def seconds_per_row(self) -> float:
        return self.steady_seconds / self.steady_rows


class OurRun:
    """A store and the worker that fills it.

    Parameters
    ----------
    setting
        Model, threads, sizes.
    corpus
        JSONL.
    root
        Where the store goes.
    options
        Fields of ExtractSpec that differ from: all points, nothing else.
    """

    def __init__(self, setting: Setting, corpus: Path, root: Path, **options: Any) -> None:
        given: dict[str, Any] = {
            "model": str(setting.model),
            "data": (str(corpus),),
            "out": root,
            "dtype": "bfloat16",
            "statistics": False,
            "lens_rows": "none",
            "task_rows": setting.scale.task_rows,
            "threads": setting.threads,
            "engine": "process",
        }
        self.root = root
        self.record, folder = prepare(ExtractSpec(**{**given, **options}))
        self.worker = Worker(WorkerSettings(root=root, folder=folder, threads=setting.threads))
        self.tasks: list[Task] = list(self.worker.selections.tasks())
        if len(self.tasks) < 3:
            raise BenchmarkFailed("a steady state needs three tasks: give more rows")
        self.batches: list[list[Batch]] = [self._first(task) for task in self.tasks]
        self.clear()

    def _first(self, task: Task) -> list[Batch]:
        """Run a task to warm up; the micro-batches that it consists of."""
        self.worker.run(task)
        equipment = self.worker.equipment
        ranges = list(TaskNumbers.of(equipment, task).ranges.values())
        return [b for window in task_windows(equipment, task, ranges) for b in window.batches]

    @property
    def steady_batches(self) -> list[Batch]:
        """The micro-batches of the tasks that count in the steady state."""
        return [batch for task in self.batches[1:-1] for batch in task]

    def sample(self) -> Sample:
        """Run all tasks as an engine does; the store must hold none of them."""
        start = time.perf_counter()
        with ThreadPoolExecutor(IN_FLIGHT) as threads:
            commits = list(threads.map(self.worker.run, self.tasks))
        seconds = time.perf_counter() - start
        done = [commit for made in commits for commit in made]
        if len(done) != len(self.tasks):
            raise BenchmarkFailed("a task had been committed before")
        return Sample.of(done, seconds)

    def written_bytes(self) -> int:
        """Bytes of all shards and commits."""
        folders = [self.root / "commits", *self._shard_folders()]
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files)

    def clear(self) -> None:
        """Remove every commit and shard; the layout stays."""
        shutil.rmtree(self.root / "commits", ignore_errors=True)
        for folder in self._shard_folders():
            shutil.rmtree(folder, ignore_errors=True)

    def _shard_folders(self) -> list[Path]:
        """Where the arrays that workers fill keep their shards; coordinates are no such arrays."""
        found = []
        for path in self.root.glob("*.zarr/**/zarr.json"):
            codecs = json.loads(path.read_bytes()).get("codecs", [])
            if any(codec["name"] == "sharding_indexed" for codec in codecs):
                found.append(path.parent / "c")
        return found


class BareModel:
    """The decoder without its head over given batches, on a thread of its own."""

    def __init__(self, setting: Setting) -> None:
        self._thread = ThreadPoolExecutor(
            1, initializer=torch.set_num_threads, initargs=(setting.threads,)
        )
        self._model = AutoModel.from_pretrained(setting.model, dtype=torch.bfloat16).eval()

    def seconds_per_row(self, batches: Sequence[Batch]) -> float:
        """One pass over the batches: seconds by the rows in them."""
        seconds = self._thread.submit(self._run, batches).result()
        return seconds / sum(batch.tokens for batch in batches)

    def _run(self, batches: Sequence[Batch]) -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            for batch in batches:
                self._forward(batch)
        return time.perf_counter() - start

    def _forward(self, batch: Batch) -> None:
        """The same tokens, in the same shapes, through the same kernels; nothing captured."""
        if batch.position_ids is None:
            self._model(input_ids=batch.input_ids, use_cache=False)
            return
        with attention_by_segment(self._model.config, batch.position_ids):
            self._model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
