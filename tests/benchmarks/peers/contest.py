"""What every contestant shares: its command line, its clock, and the proof of what it wrote.

A contestant is a process of its own. It loads the model, runs one batch to warm up and answers
``{"ready": …}``; then, for every line ``{"mode": "recipe" | "ours", "folder": …}`` on stdin, it
extracts all documents to that folder and answers one JSON line with its seconds, rows and
bytes. So all contestants stay loaded, the harness lets them take turns, and neither loading nor
the first batch is in any time. After the clock has stopped the files are opened again: they
must hold rows × points × hidden values of bfloat16, or the contestant fails.

The peers import nothing of depthscope; only the yardstick (bare.py) borrows its attention.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

Documents = list[list[int]]
"""Token ids of some documents."""

RECIPE_BATCH = 8
"""Documents in a batch of a documented recipe: of 8 and 16 the one with less padding."""


@dataclass(frozen=True)
class Work:
    """The corpus of one contest, and what must come out of it."""

    documents: Documents
    """The corpus, in its order."""
    batches: list[Documents]
    """Our own batches of it. A document that crosses a border between tasks stands in two."""
    points: int
    hidden: int

    @classmethod
    def read(cls, path: Path) -> Work:
        content = json.loads(path.read_text())
        return cls(**{name: content[name] for name in cls.__dataclass_fields__})

    def recipe_batches(self) -> list[Documents]:
        """The documents in the order given, in batches of RECIPE_BATCH."""
        starts = range(0, len(self.documents), RECIPE_BATCH)
        return [self.documents[start : start + RECIPE_BATCH] for start in starts]


@dataclass(frozen=True)
class Contestant:
    """One way of getting the residual stream to disk."""

    load: Callable[[Path], Any]
    """Model folder to model, in bfloat16."""
    extract: Callable[[Any, Documents, str, Path], int]
    """Model, one batch, mode, file to write: rows done."""
    writes: bool = True
    order: Callable[[Work], list[Documents]] = Work.recipe_batches
    """The batches of mode ``recipe``."""


def right_padded(documents: Documents) -> torch.Tensor:
    """int64 (documents, longest), padded on the right with 0.

    Needs no mask: a causal model's real positions never look at what stands to their right.
    """
    padded = torch.zeros((len(documents), max(map(len, documents))), dtype=torch.long)
    for line, ids in zip(padded, documents, strict=True):
        line[: len(ids)] = torch.tensor(ids)
    return padded


def real_positions(documents: Documents, side: str = "right") -> torch.Tensor:
    """bool (documents, longest): True where a token of a document stands."""
    lengths = torch.tensor([len(ids) for ids in documents])[:, None]
    positions = torch.arange(int(lengths.max()))[None]
    return positions < lengths if side == "right" else positions >= lengths.max() - lengths


def serve(contestant: Contestant) -> None:
    """Run the protocol of the module's docstring until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    work = Work.read(options.work)
    batches = {"recipe": contestant.order(work), "ours": work.batches}
    with torch.inference_mode():
        model = contestant.load(options.model)
        for mode in batches:
            warm = options.work.with_suffix(f".{os.getpid()}.warm")
            contestant.extract(model, batches[mode][0], mode, warm)
            warm.unlink(missing_ok=True)
        print(json.dumps({"ready": True, "pid": os.getpid()}), file=answers, flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            answer = _sample(contestant, model, work, batches[order["mode"]], order)
            print(json.dumps(answer), file=answers, flush=True)


def _sample(
    contestant: Contestant, model: Any, work: Work, batches: list[Documents], order: dict[str, str]
) -> dict[str, Any]:
    folder = Path(order["folder"])
    folder.mkdir(parents=True)
    start, processor = time.perf_counter(), time.process_time()
    rows = 0
    for number, batch in enumerate(batches):
        path = folder / f"{number:05d}.safetensors"
        rows += contestant.extract(model, batch, order["mode"], path)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    if rows != (expected := sum(len(ids) for batch in batches for ids in batch)):
        raise SystemExit(f"{rows} rows were run, {expected} are in the batches")
    proof = check(folder, work, rows) if contestant.writes else {"bytes": 0}
    return {"seconds": seconds, "processor_seconds": processor, "rows": rows, **proof}


def check(folder: Path, work: Work, rows: int) -> dict[str, Any]:
    """Open every file again, count the values, and sum them up point by point.

    Returns ``bytes`` on disk and ``fingerprint``: the mean |value| of each point, by which the
    harness sees that all contestants wrote the same states.
    """
    count, totals = 0, torch.zeros(work.points, dtype=torch.float64)
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            tensors = [file.get_tensor(name) for name in sorted(file.keys())]
        stacked = tensors if len(tensors) > 1 else list(tensors[0])
        for point, tensor in enumerate(stacked):
            if tensor.dtype != torch.bfloat16 or tensor.shape[-1] != work.hidden:
                raise SystemExit(f"{path}: {tensor.dtype} of shape {tuple(tensor.shape)}")
            count += tensor.numel()
            totals[point] += tensor.float().abs().sum(dtype=torch.float64)
    if count != (expected := rows * work.points * work.hidden):
        raise SystemExit(f"{folder}: {count} values, not {expected}")
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {"bytes": size, "fingerprint": (totals / (rows * work.hidden)).tolist()}
