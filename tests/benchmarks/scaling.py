"""e. Two workers of one thread against one worker of one thread."""

from __future__ import annotations

import cluster
import corpora
from findings import Finding, Section
from scale import Setting

METHOD = (
    "`depthscope extract` on its own local Ray cluster, {rows:,} rows, tasks of {task_rows} rows,"
    " all points in bfloat16. Tokens per second come from the commits' own times, while every"
    " worker works; start-up (interpreter, Ray, laying out, loading) stands apart. One and two"
    " workers take turns."
)

#: A run is cut into so many tasks, so that each of two workers commits several.
TASKS = 14


def run(setting: Setting) -> Section:
    """Pairs of runs, in changing order."""
    scale, scratch = setting.scale, setting.scratch
    chosen = corpora.choose(setting.model, scale.worker_rows, seed=2)
    corpus = corpora.write(scratch / "corpus.jsonl", chosen)
    task_rows = max(64, scale.worker_rows // TASKS // 64 * 64)
    rates: dict[int, list[float]] = {1: [], 2: []}
    startup: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(scale.rounds):
        for workers in (1, 2) if turn % 2 else (2, 1):
            out = scratch / f"store-{workers}"
            done = cluster.extract(
                setting, corpus, out, workers=workers, threads=1, task_rows=task_rows
            )
            rates[workers].append(done.steady_rate())
            startup[workers].append(done.startup_seconds)
            cluster.remove(out)
    ratio = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    return Section(
        "e",
        "Two workers",
        METHOD.format(rows=scale.worker_rows, task_rows=task_rows),
        [
            Finding("two workers over one, tokens per second", ratio, "×", "at least", 1.8),
            Finding("one worker of one thread", rates[1], "tokens/s"),
            Finding("two workers of one thread", rates[2], "tokens/s"),
            Finding("start-up, one worker", startup[1], "s"),
            Finding("start-up, two workers", startup[2], "s"),
        ],
        {"tokens_per_second": rates, "startup_seconds": startup},
    )
