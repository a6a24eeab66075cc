"""What one driver costs at scale: its processor time per task and its memory, for 8 to 512 workers.

The workers are simulated (tests/jobs/simulated_cluster.py): a model that computes nothing, at a
chosen rate, through the real preparation, dispatcher, worker, writer and commits.

    python -m tests.benchmarks.driver [WORKERS …]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from depthscope.jobs import ExtractSpec, extract
from depthscope.jobs.progress import Silent
from depthscope.storage.status import status
from depthscope.storage.verify import verify

from ..jobs.simulated_cluster import SimulatedPool

ROWS_OF_A_TASK = 64
TASKS_OF_A_WORKER = 8


@dataclass
class Measured:
    """One run: seconds of the driver's thread and bytes of its process, by quarters of the run."""

    workers: int
    tasks: int
    seconds: float
    commits_per_second: float
    driver_ms_per_task: list[float]
    memory_mb: list[float]
    status_seconds: float
    verified: str


class _Watch(Silent):
    """Notes the driver's own time and memory whenever a quarter of the tasks is done."""

    def __init__(self, rows: int) -> None:
        self.rows, self.marks = rows, [(0, time.thread_time(), _memory())]

    def tick(self, rows: int, seconds: Any) -> None:
        if rows >= self.rows * len(self.marks) / 4:
            self.marks.append((rows, time.thread_time(), _memory()))


def measure(workers: int, folder: Path, model: Path, tasks: int | None = None) -> Measured:
    """Run one driver over so many simulated workers."""
    tasks = tasks or workers * TASKS_OF_A_WORKER
    rows = tasks * ROWS_OF_A_TASK
    corpus = folder / f"corpus-{workers}-{tasks}.jsonl"
    with corpus.open("w") as file:
        for _ in range(tasks):
            file.write(json.dumps({"text": "x" * ROWS_OF_A_TASK}) + "\n")
    # So fast that the few processes which write for all workers are never waited for: 50 tasks a
    # second in all, whatever the number of workers.
    rate = 50 * ROWS_OF_A_TASK / workers
    store = folder / f"store-{workers}-{tasks}"
    spec = ExtractSpec(
        model=str(model),
        data=(str(corpus),),
        out=store,
        task_rows=ROWS_OF_A_TASK,
        batch_tokens=ROWS_OF_A_TASK,
        points="0",
        statistics=False,
        lens_rows="none",
        threads=1,
        workers=workers,
    )
    watch: Any = None
    clock = 0.0

    def pool(settings: Any, _: ExtractSpec) -> SimulatedPool:
        nonlocal watch, clock
        made = SimulatedPool(settings, workers, rate)
        watch.marks[0] = (0, time.thread_time(), _memory())
        clock = time.monotonic()
        return made

    watch = _Watch(rows)
    done = extract(spec, progress=watch, pool=pool)
    seconds = time.monotonic() - clock
    assert done.committed == tasks, (done.committed, tasks)
    began = time.monotonic()
    state = status(store)
    asked = time.monotonic() - began
    assert state.tasks_committed == tasks
    parts = list(zip(watch.marks, watch.marks[1:], strict=False))
    each = [1000 * (b[1] - a[1]) / max(1, (b[0] - a[0]) // ROWS_OF_A_TASK) for a, b in parts]
    return Measured(
        workers,
        tasks,
        round(seconds, 1),
        round(tasks / seconds, 1),
        [round(value, 2) for value in each],
        [round(mark[2] / 1e6, 1) for mark in watch.marks],
        round(asked, 2),
        verify(store).sentence,
    )


def _memory() -> int:
    return int(psutil.Process().memory_info().rss)


def main(workers: list[int]) -> None:
    """Measure and print one JSON object a line."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from ..conftest import VOCABULARY, byte_tokenizer

    with tempfile.TemporaryDirectory(prefix="depthscope-driver-") as name:
        folder = Path(name)
        torch.manual_seed(7)
        shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
        LlamaForCausalLM(
            LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=512, **shape, **heads)
        ).save_pretrained(folder / "model")
        byte_tokenizer().save_pretrained(folder / "model")
        for number in workers:
            print(json.dumps(vars(measure(number, folder, folder / "model"))), flush=True)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [8, 64, 512])
