"""A worker: loads the model once and turns tasks into committed data.

For every task: find the documents it needs, cut them into windows and micro-batches, run the
model's body, let the recorders take what is asked for, and leave writing, publishing and the commit
to the write-behind thread. Plain code in one process; engines only place it.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from depthscope.storage.commits import Commit, CommitLog
from depthscope.storage.head import Head
from depthscope.storage.layout import ACTIVATIONS, LENS, STATISTICS, StorePaths
from depthscope.storage.run_record import RunRecord
from depthscope.storage.tasks import Selections, Task

from .batches import Batch, micro_batches, windows
from .clock import Clock
from .description import ModelInfo
from .faults import (
    NonFiniteError,
    PoisonedDocumentError,
    check_ids,
    count_nonfinite,
    find_poison,
)
from .head_export import export_head
from .lens import LENS_VALUES, LensMeasure
from .model import Body, load_body
from .needs import needed_pieces, stored_ranges
from .recorders import ActivationRecorder, BlockPool, LensRecorder, Plane, StatisticsRecorder
from .write_behind import TaskFiles, WriteBehind, plans_by_name


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs beside the store; none of it decides a number.

    Attributes
    ----------
    root
        The store.
    folder
        The model's folder.
    threads
        Intra-op threads.
    window_bytes
        About how many bytes of activations are held before they are handed to the writer.
    on_error
        ``stop`` or ``skip``: what a document that fails does.
    allow_nonfinite
        Whether NaN and infinities are stored rather than refused.
    max_memory, offload_folder
        Passed on to accelerate's placement.
    trust_remote_code
        Whether code from the model's folder may run.
    """

    root: Path
    folder: Path
    threads: int
    window_bytes: int = 512 << 20
    on_error: str = "stop"
    allow_nonfinite: bool = False
    max_memory: dict[Any, int | str] | None = None
    offload_folder: Path | None = None
    trust_remote_code: bool = False


def hardware(threads: int) -> dict[str, Any]:
    """What decides the last bit of a number: device kind, threads and libraries."""
    import transformers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "device": device,
        "threads": threads if device == "cpu" else 0,
        "capability": torch.backends.cpu.get_cpu_capability() if device == "cpu" else "",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


class Worker:
    """Runs tasks, one at a time on a compute thread, while earlier ones are being written.

    Parameters
    ----------
    settings
        Where the store and the model are, and the limits.

    Raises
    ------
    RequestError
        The model cannot be loaded, or its blocks do not add what the family says.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.clock = Clock()
        self.rows_done = 0
        self._compute = ThreadPoolExecutor(1, "compute", initializer=self._set_threads)
        self._compute.submit(self._load).result()
        self._pool = BlockPool(self.clock)
        self._writer = WriteBehind(self.clock)
        self._lock = threading.Lock()

    def _set_threads(self) -> None:
        torch.set_num_threads(self.settings.threads)

    def _load(self) -> None:
        root = self.settings.root
        self.record = RunRecord.load(root)
        self.selections = Selections(root, self.record)
        self.log = CommitLog(root)
        self.spec = self.record.identity_fields
        info = ModelInfo(**self.record.model)
        self.body: Body = load_body(
            self.settings.folder,
            info,
            max_memory=self.settings.max_memory,
            offload_folder=self.settings.offload_folder,
            trust_remote_code=self.settings.trust_remote_code,
        )
        sublayers = ("attention_output", "mlp_output")
        self.activations = plans_by_name(
            root, [f"{ACTIVATIONS}/{name}" for name in ("residual", *sublayers)]
        )
        self.planes = [Plane("residual", p, i) for i, p in enumerate(self.record.points)]
        for name in sublayers:
            if name in self.activations:
                self.planes += [Plane(name, layer, layer) for layer in range(info.layers)]
        self.statistics = plans_by_name(
            root, [f"{STATISTICS}/{name}" for name in ("norm", "norm_ratio", "cosine")]
        )
        self.lens_plans = plans_by_name(root, [f"{LENS}/{name}" for name in LENS_VALUES])
        self.lens: LensMeasure | None = None
        if self.lens_plans:
            head = (
                Head.load(root)
                if StorePaths(root).head.exists()
                else export_head(self.settings.folder, info, self.settings.trust_remote_code)
            )
            self.lens = LensMeasure(head, int(self.spec["lens_memory"]), self.body.device)
        self._checked = False

    def run(self, task: Task) -> Commit | None:
        """Turn a task into committed data; blocks until the commit is on the disk.

        Returns
        -------
        Commit or None
            None when another attempt committed the task first.

        Raises
        ------
        PoisonedDocumentError, NonFiniteError
            A document fails, and documents that fail stop the run.
        OSError
            The store cannot be written.
        """
        written = self._compute.submit(self._run, task).result()
        return written.result()

    def progress(self) -> tuple[int, Mapping[str, float]]:
        """Rows through the model so far, and seconds by kind of work."""
        return self.rows_done, self.clock.seconds()

    def close(self) -> None:
        """Finish what is queued."""
        self._compute.shutdown()
        self._writer.close()

    def _run(self, task: Task) -> Future[Commit | None]:
        attempt = secrets.token_hex(4)
        files = TaskFiles.create(self.settings.root, task.index, attempt, self.clock)
        before, started = self.clock.seconds(), time.time()
        try:
            with torch.inference_mode():
                run = TaskRun(self, task, files)
                run.go()
        except BaseException:
            # Behind what the task has queued already, so that nothing is written after it.
            self._writer.submit(files.abort)
            raise
        commit = Commit(
            task=task.index,
            points=(0, self.body.info.layers),
            rows=task.rows,
            shards=(),
            nonfinite=run.nonfinite,
            invalid_documents=tuple(sorted(run.invalid.items())),
            attempt=attempt,
            host=socket.gethostname(),
            pid=os.getpid(),
            hardware=hardware(self.settings.threads),
            rows_run=run.rows_run,
        )
        finish = partial(self._finish, commit, files, run, before, started)
        return self._writer.submit(finish)  # type: ignore[return-value]

    def _finish(
        self,
        commit: Commit,
        files: TaskFiles,
        run: TaskRun,
        before: Mapping[str, float],
        started: float,
    ) -> Commit | None:
        try:
            run.write_numbers()
            for future in run.written:
                future.result()
            shards = files.publish()
        except BaseException:
            files.abort()
            raise
        seconds = {k: round(v - before[k], 6) for k, v in self.clock.seconds().items()}
        times = {"started": started, "finished": time.time()}
        commit = replace(commit, shards=shards, timings={**seconds, **times})
        return commit if self.log.add(commit) else None


class TaskRun:
    """One attempt at one task: its recorders and what came of it."""

    def __init__(self, worker: Worker, task: Task, files: TaskFiles) -> None:
        self.worker, self.task, self.files = worker, task, files
        self.body, self.clock = worker.body, worker.clock
        self.pieces = needed_pieces(worker.settings.root, worker.selections, task)
        ranges = stored_ranges(worker.selections, task)
        self.activations: ActivationRecorder | None = None
        if worker.planes and "activations" in ranges:
            self.activations = ActivationRecorder(
                worker.activations, worker.planes, ranges["activations"], worker._pool
            )
        layers = self.body.info.layers
        self.statistics: StatisticsRecorder | None = None
        if worker.statistics:
            self.statistics = StatisticsRecorder(layers, ranges["statistics"])
        self.lens: LensRecorder | None = None
        if worker.lens is not None:
            self.lens = LensRecorder(worker.lens, layers + 1, ranges["lens"])
        self.invalid: dict[int, str] = {}
        self.nonfinite: dict[str, int] = {}
        self.rows_run = 0
        self._finite = True
        self.written: list[Future[object]] = []

    def go(self) -> None:
        """Run every window of the task."""
        spec, record = self.worker.spec, self.worker.record
        row_bytes = max(1, len(self.worker.planes)) * int(record.model["hidden"]) * 4
        tokens = max(4 * int(spec["batch_tokens"]), self.worker.settings.window_bytes // row_bytes)
        pack = spec["batches"] == "packed"
        for window in windows(self.pieces, tokens):
            batches = micro_batches(window, int(spec["batch_tokens"]), pack=pack, pad_id=0)
            if self.activations is None:
                for batch in batches:
                    self._batch(batch)
                continue
            self.activations.open_window(window)
            try:
                for batch in batches:
                    self._batch(batch)
            except BaseException:
                self.activations.release()
                raise
            self.written.append(self.activations.close_window(self.files, self.worker._writer))

    def _batch(self, batch: Batch) -> None:
        try:
            self._measure(batch)
        except NonFiniteError:
            raise
        except Exception as error:
            poisoned = find_poison(self.body, batch)
            if not poisoned:
                raise
            if self.worker.settings.on_error != "skip":
                raise PoisonedDocumentError.of(self.worker.settings.root, poisoned) from error
            self._skip(batch, poisoned)

    def _skip(self, batch: Batch, poisoned: Mapping[int, str]) -> None:
        self.invalid.update(poisoned)
        bad = [piece for piece in batch.pieces if piece.document in poisoned]
        good = [piece for piece in batch.pieces if piece.document not in poisoned]
        if self.activations is not None:
            self.activations.fill_nan(bad)
        pack = batch.position_ids is not None
        for rest in micro_batches(good, batch.input_ids.numel(), pack=pack, pad_id=0):
            self._measure(rest)

    def _measure(self, batch: Batch) -> None:
        check_ids(batch, self.body.info.vocabulary)
        self._check_first(batch)
        recorders = [r for r in (self.activations, self.statistics, self.lens) if r is not None]
        for recorder in recorders:
            recorder.begin(batch)
        sublayers = self.statistics is not None or (
            self.activations is not None and self.activations.wants_sublayers
        )
        before = self.clock.seconds()
        started = time.perf_counter()
        self.body.run(
            batch.input_ids.to(self.body.device),
            on_point=self._point,
            on_layer=self._layer if sublayers else None,
            position_ids=batch.position_ids,
        )
        inside = sum(self.clock.seconds()[k] - before[k] for k in ("copy", "statistics"))
        self.clock.add("compute", time.perf_counter() - started - inside)
        if not self._finite:
            self._refuse_nonfinite(batch)
        with self.clock.measure("statistics"):
            if self.statistics is not None:
                self.statistics.end()
        with self.clock.measure("lens"):
            if self.lens is not None:
                self.lens.end()
        self.rows_run += batch.tokens
        self.worker.rows_done += batch.tokens

    def _point(self, point: int, hidden: torch.Tensor) -> None:
        with self.clock.measure("copy"):
            if self.activations is not None:
                self.activations.take("residual", point, hidden)
            if self.lens is not None:
                self.lens.take(hidden)
            # The stream only adds, so a value that is not finite stays so up to the last point.
            if point == self.body.info.layers:
                self._finite = bool(torch.isfinite(hidden).all())

    def _layer(self, layer: int, h: torch.Tensor, a: torch.Tensor, m: torch.Tensor) -> None:
        if self.statistics is not None:
            with self.clock.measure("statistics"):
                self.statistics.take(h, a, m)
        if self.activations is not None and self.activations.wants_sublayers:
            with self.clock.measure("copy"):
                self.activations.take("attention_output", layer, a)
                self.activations.take("mlp_output", layer, m)

    def _refuse_nonfinite(self, batch: Batch) -> None:
        counts, documents = count_nonfinite(self.body, batch, self.task.rows)
        if not counts:
            return
        if not self.worker.settings.allow_nonfinite:
            raise NonFiniteError.of(self.worker.settings.root, counts, documents)
        for place, number in counts.items():
            self.nonfinite[place] = self.nonfinite.get(place, 0) + number

    def _check_first(self, batch: Batch) -> None:
        if not self.worker._checked:
            self.body.check_identity(
                batch.input_ids.to(self.body.device), position_ids=batch.position_ids
            )
            self.worker._checked = True

    def write_numbers(self) -> None:
        """Write the task's statistics and lens values."""
        if self.statistics is not None:
            plans = self.worker.statistics
            for name, values in self.statistics.arrays().items():
                self._write_shards(plans[name].path, values, self.statistics.stored.first)
        if self.lens is not None:
            for name, lens_values in self.lens.values.items():
                path = self.worker.lens_plans[name].path
                self._write_shards(path, lens_values, self.lens.stored.first)

    def _write_shards(self, path: str, values: Any, first: int) -> None:
        plans = {
            p.path: p for p in (*self.worker.statistics.values(), *self.worker.lens_plans.values())
        }
        plan = plans[path]
        shard = plan.shard[-1]
        for start in range(0, values.shape[-1], shard):
            index = (*(0,) * (values.ndim - 1), (first + start) // shard)
            self.files.write_shard(plan, index, values[..., start : start + shard])
