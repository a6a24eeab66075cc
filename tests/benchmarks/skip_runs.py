"""Our own sweeps over skipped layers, through the public command, and what is counted in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from depthscope.jobs import ExtractSpec, InterveneSpec, intervene
from depthscope.jobs.prepare import prepare
from depthscope.jobs.process_pool import ProcessPool
from depthscope.pipeline.equipment import WorkerSettings
from depthscope.pipeline.layer_stack import LayerStack
from depthscope.pipeline.placed_head import PlacedHead
from depthscope.pipeline.schedules import TaskWorker, make_worker
from depthscope.storage.effects import effects_log
from depthscope.storage.token_table import TokenTable
from scale import Setting
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

#: Positions in front of which layers are skipped.
SPLITS = (8, 16, 24, 32)


@dataclass
class Swept:
    """One finished sweep.

    Attributes
    ----------
    seconds
        From the start of the first task to the last commit: the weights' reading is in it, the
        start of the interpreter and the laying out are not.
    effects
        What it measured.
    bytes_read
        Of the checkpoint's layers and embedding.
    """

    seconds: float
    effects: xr.Dataset
    bytes_read: int


class OurSweeps:
    """A store of some documents, laid out for interventions alone.

    Parameters
    ----------
    corpus
        JSONL.

    Attributes
    ----------
    root, documents, layers
        The store, the token ids of its documents, and L.
    """

    def __init__(self, setting: Setting, corpus: Path, root: Path) -> None:
        self._setting, self.root, self._number = setting, root, 0
        given: dict[str, Any] = {"points": "none", "lens_rows": "none"}
        record, _ = prepare(
            ExtractSpec(
                model=str(setting.model), data=(str(corpus),), out=root, dtype="float32", **given
            )
        )
        self.layers = int(record.model["layers"])
        table = TokenTable(root)
        _, starts, lengths = table.document_spans()
        self.documents = [
            table.token_ids(int(first), int(first + length)).tolist()
            for first, length in zip(starts, lengths, strict=True)
        ]

    def sweep(self, documents: int | None = None, **options: Any) -> Swept:
        """Skip every layer in front of each split; the first so many documents."""
        self._number += 1
        given: dict[str, Any] = {"scope": "future", "splits": ",".join(map(str, SPLITS))}
        spec = InterveneSpec(
            name=f"run-{self._number}",
            schedule=options.pop("schedule", "resident"),
            documents=documents,
            first_documents=True,
            engine="process",
            threads=self._setting.threads,
            **(given | options),
        )
        made: list[Any] = []

        def worker(settings: WorkerSettings) -> TaskWorker:
            made.append(make_worker(settings))
            return made[0]

        done = intervene(self.root, spec, pool=lambda settings, _: ProcessPool(settings, worker))
        times = [commit.timings for commit in effects_log(self.root, spec.name).commits()]
        return Swept(
            max(float(t["finished"]) for t in times) - min(float(t["started"]) for t in times),
            xr.open_zarr(done.path, consolidated=False).load(),
            made[0].loader.bytes_read,
        )


@dataclass
class Counts:
    """What a sweep ran, counted where it happens.

    Attributes
    ----------
    calls, lines, flops
        Calls of each layer, lines in them, and FLOP by torch's counter, the head apart.
    head_rows
        Rows that went through the head.
    """

    calls: Counter[int] = field(default_factory=Counter)
    lines: Counter[int] = field(default_factory=Counter)
    flops: float = 0.0
    head_rows: int = 0


@contextmanager
def counting() -> Iterator[Counts]:
    """Count layer calls, their FLOP and the head's rows while open."""
    counts = Counts()
    run, logits = LayerStack.run, PlacedHead.logits

    def counted(self: LayerStack, batch: Any, hidden: Any, *rest: Any) -> Any:
        (layer,) = self.blocks
        with FlopCounterMode(display=False) as counter:
            out = run(self, batch, hidden, *rest)
        counts.flops += counter.get_total_flops()
        counts.calls[layer] += 1
        counts.lines[layer] += len(hidden)
        return out

    def rows(self: PlacedHead, some: torch.Tensor, out: torch.Tensor | None = None) -> Any:
        counts.head_rows += len(some)
        return logits(self, some, out)

    LayerStack.run, PlacedHead.logits = counted, rows  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        LayerStack.run, PlacedHead.logits = run, logits  # type: ignore[method-assign]


def flops_of_one_pass(folder: Path, ids: list[int]) -> float:
    """FLOP of a bare pass of one document through all layers, by torch's counter."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.tensor([ids]), use_cache=False)
    return float(counter.get_total_flops())
