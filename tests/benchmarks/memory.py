"""f. A worker's memory, over a corpus and over one ten times as long."""

from __future__ import annotations

import cluster
import corpora
from findings import Finding, Section
from scale import Setting

METHOD = (
    "Peak of RssAnon + RssShmem of the worker's process (a Ray actor of `depthscope extract`),"
    " looked up in /proc every {look:.0f} ms, over {rows:,} rows and over ten times as many. Tasks"
    " ({task_rows:,} rows, the most a worker collects before it writes) and micro-batches"
    " ({batch_tokens} tokens) are the same; nothing but the length of the corpus differs."
)

#: Tokens of a micro-batch: few, so that a short corpus has many.
BATCH = 256

#: Peaks may differ by so much without being called growth: allocators keep what they were given.
LIMIT = 1.05


def run(setting: Setting) -> Section:
    """Pairs of runs, in changing order."""
    scale, scratch = setting.scale, setting.scratch
    corpus = {
        times: corpora.write(
            scratch / f"corpus-{times}.jsonl",
            corpora.choose(setting.model, times * scale.memory_rows, seed=3),
        )
        for times in (1, 10)
    }
    task_rows = scale.memory_rows // 2
    peaks: dict[int, list[float]] = {1: [], 10: []}
    for turn in range(scale.rounds):
        for times in (1, 10) if turn % 2 else (10, 1):
            out = scratch / f"store-{times}"
            done = cluster.extract(
                setting,
                corpus[times],
                out,
                watch=True,
                workers=1,
                threads=setting.threads,
                task_rows=task_rows,
                batch_tokens=BATCH,
            )
            peaks[times].append(done.worker_peak() / 2**20)
            cluster.remove(out)
    ratio = [ten / one for one, ten in zip(peaks[1], peaks[10], strict=True)]
    return Section(
        "f",
        "Memory of a worker",
        METHOD.format(
            look=cluster.LOOK * 1000,
            rows=scale.memory_rows,
            task_rows=task_rows,
            batch_tokens=BATCH,
        ),
        [
            Finding("peak over 10× the rows, over the peak at 1×", ratio, "×", "at most", LIMIT),
            Finding("peak, 1× rows", peaks[1], "MiB"),
            Finding("peak, 10× rows", peaks[10], "MiB"),
        ],
        {"peak_mebibytes": peaks},
    )
