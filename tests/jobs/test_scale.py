"""One driver before many workers: all real but the model and the time that it takes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
from depthscope.jobs import ExtractSpec, extract
from depthscope.jobs.progress import Silent
from depthscope.storage.status import status
from depthscope.storage.verify import verify

from ..conftest import write_jsonl
from .simulated_cluster import SimulatedPool

#: Each worker holds two tasks of its four, so the second quarter is already the steady state.
WORKERS, TASKS, ROWS = 512, 2048, 32
#: Milliseconds of the driver's own processor time for a task that are never too many.
CHEAP = 3.0
#: Bytes that the driver's process may grow by in the second half, 16 KB a task; measured: none.
SLACK = 8 << 20


class Ticks(Silent):
    """Notes rows, the time of the driver's own thread, and the memory of its process."""

    def __init__(self) -> None:
        self.marks: list[tuple[int, float, int]] = []
        self._process = psutil.Process()

    def tick(self, rows: int, seconds: Any) -> None:
        memory = self._process.memory_info().rss
        self.marks.append((rows, time.thread_time(), memory))

    def at(self, share: float) -> tuple[int, float, int]:
        """The first mark at which so much of the run was done."""
        return next(mark for mark in self.marks if mark[0] >= share * TASKS * ROWS)

    def cost(self, begin: float, end: float) -> float:
        """Milliseconds a task between two shares of the run."""
        first, last = self.at(begin), self.at(end)
        return 1000 * (last[1] - first[1]) / ((last[0] - first[0]) / ROWS)


def test_many_workers_before_one_driver(tiny_model: Path, tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": "x" * ROWS}] * TASKS)
    store = tmp_path / "store"
    spec = ExtractSpec(
        model=str(tiny_model),
        data=(str(corpus),),
        out=store,
        task_rows=ROWS,
        batch_tokens=ROWS,
        points="0",
        statistics=False,
        lens_rows="none",
        threads=1,
        workers=WORKERS,
    )
    ticks = Ticks()
    done = extract(
        spec, progress=ticks, pool=lambda settings, _: SimulatedPool(settings, WORKERS, 1000.0)
    )
    assert (done.committed, done.tasks) == (TASKS, TASKS)
    assert status(store).state == "complete"
    assert verify(store).problems == []
    second, last = ticks.cost(0.25, 0.5), ticks.cost(0.75, 1)
    # A cost that grows with the tasks that are done would be 2.3 times as high.
    assert last <= max(2 * second, CHEAP), (second, last)
    grown = ticks.marks[-1][2] - ticks.at(0.5)[2]
    assert grown <= SLACK, grown
