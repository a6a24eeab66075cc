"""Ours, as a process that answers like the peers (peers/contest.py says how).

It makes the work the others get: the documents in their order, and our batches of them. Its
seconds are the steady state of a middle task (see our_run.py), scaled to all rows;
``drained_seconds`` runs from the start to the last commit, filling and draining the pipeline
included. The others run the documents, or the batches, of that middle task.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from depthscope.storage.shard_reader import ArrayReader
from depthscope.storage.token_table import TokenTable
from our_run import OurRun
from scale import Scale, Setting


def main() -> None:
    """Lay out, warm up, write the work, and answer until stdin ends."""
    parser = argparse.ArgumentParser()
    for name in ("model", "work", "corpus", "store"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--task-rows", type=int, required=True)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    setting = Setting(
        scale=Scale(task_rows=options.task_rows),
        model=options.model,
        scratch=options.store.parent,
        peers_python=Path(sys.executable),
        threads=options.threads,
    )
    ours = OurRun(setting, options.corpus, options.store)
    options.work.write_text(json.dumps(_work(ours)))
    print(json.dumps({"ready": True, "pid": os.getpid()}), file=answers, flush=True)
    for _ in sys.stdin:
        processor = time.process_time()
        taken = ours.sample()
        answer = {
            "seconds": taken.seconds_per_row * taken.rows,
            "drained_seconds": taken.seconds,
            "processor_seconds": time.process_time() - processor,
            "rows": taken.rows,
            "bytes": ours.written_bytes(),
            "fingerprint": _fingerprint(ours),
        }
        ours.clear()
        print(json.dumps(answer), file=answers, flush=True)


def _work(ours: OurRun) -> dict[str, Any]:
    table = TokenTable(ours.root)
    documents = [table.token_ids(start, end).tolist() for start, end in _middle(ours)]
    batches = [
        [piece.token_ids.tolist() for piece in batch.pieces] for batch in ours.steady_batches
    ]
    return {
        "documents": documents,
        "batches": batches,
        "points": len(ours.record.points),
        "hidden": ours.record.model["hidden"],
    }


def _middle(ours: OurRun) -> list[tuple[int, int]]:
    """First row and one past the last of the documents that lie in the middle tasks alone."""
    begin, end = ours.tasks[1].rows[0], ours.tasks[-2].rows[1]
    _, starts, lengths = TokenTable(ours.root).document_spans()
    spans = zip(starts.tolist(), (starts + lengths).tolist(), strict=True)
    return [(first, last) for first, last in spans if begin <= first and last <= end]


def _fingerprint(ours: OurRun) -> list[float]:
    """Mean |value| of every point over those documents, read back from the store."""
    reader = ArrayReader(ours.root, "activations.zarr/residual")
    middle = _middle(ours)
    rows = slice(middle[0][0], middle[-1][1])
    return [
        float(np.abs(reader.read(point, rows, as_float32=True)).mean(dtype=np.float64))
        for point in range(len(ours.record.points))
    ]


if __name__ == "__main__":
    main()
