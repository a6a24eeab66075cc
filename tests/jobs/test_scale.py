"""One driver before many workers: all real but the model and the time that it takes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from depthscope.jobs import ExtractSpec, extract
from depthscope.jobs.progress import Silent
from depthscope.storage.status import status
from depthscope.storage.verify import verify

from ..conftest import write_jsonl
from .simulated_cluster import SimulatedPool

WORKERS, TASKS, ROWS = 512, 640, 32


class Ticks(Silent):
    """Notes rows and the time of the driver's own thread."""

    def __init__(self) -> None:
        self.marks: list[tuple[int, float]] = []

    def tick(self, rows: int, seconds: Any) -> None:
        self.marks.append((rows, time.thread_time()))


def test_512_workers_before_one_driver(tiny_model: Path, tmp_path: Path) -> None:
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
    # In milliseconds a task, the second half must not cost more than thrice the first, or 50.
    middle = next(i for i, (rows, _) in enumerate(ticks.marks) if rows >= TASKS * ROWS / 2)
    first, half, last = ticks.marks[0], ticks.marks[middle], ticks.marks[-1]
    costs = [(b[1] - a[1]) / max(1, (b[0] - a[0]) / ROWS) for a, b in ((first, half), (half, last))]
    assert costs[1] < max(3 * costs[0], 0.05), costs
