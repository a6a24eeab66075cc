"""One attempt at one task: its documents in micro-batches through the model, and what is taken."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future

import numpy as np
import torch
from depthscope.storage.arrays import ArrayPlan
from depthscope.storage.tasks import Task
from numpy.typing import NDArray

from .activations import ActivationRecorder
from .batches import Batch, micro_batches, windows
from .equipment import Equipment
from .faults import (
    NonFiniteError,
    PoisonedDocumentError,
    check_ids,
    count_nonfinite,
    find_poison,
)
from .needs import needed_pieces, stored_ranges
from .recorders import LensRecorder, StatisticsRecorder
from .write_behind import TaskFiles

#: About how many bytes of activations (as float32) are collected before they are written. The
#: windows that follow decide how documents meet in a batch, so this is no setting of a machine's.
WINDOW_BYTES = 1 << 30


class TaskRun:
    """One attempt at one task: its recorders and what came of it."""

    def __init__(self, equipment: Equipment, task: Task, files: TaskFiles) -> None:
        self.equipment, self.task, self.files = equipment, task, files
        self.body, self.clock = equipment.body, equipment.clock
        self.pieces = needed_pieces(equipment.settings.root, equipment.selections, task)
        ranges = stored_ranges(equipment.selections, task)
        self.activations: ActivationRecorder | None = None
        if equipment.planes and "activations" in ranges:
            self.activations = ActivationRecorder(
                equipment.activations,
                equipment.planes,
                ranges["activations"],
                equipment.pool,
                equipment.staging,
            )
        layers = self.body.info.layers
        self.statistics: StatisticsRecorder | None = None
        if equipment.statistics:
            self.statistics = StatisticsRecorder(layers, ranges["statistics"])
        self.lens: LensRecorder | None = None
        if equipment.lens is not None:
            self.lens = LensRecorder(equipment.lens, layers + 1, ranges["lens"])
        self.invalid: dict[int, str] = {}
        self.nonfinite: dict[str, int] = {}
        self.rows_run = 0
        self._finite = torch.ones((), dtype=torch.bool)
        self.written: list[Future[object]] = []

    def go(self) -> None:
        """Run every window of the task."""
        spec = self.equipment.identity
        row_bytes = max(1, len(self.equipment.planes)) * self.body.info.hidden * 4
        tokens = max(4 * int(spec["batch_tokens"]), WINDOW_BYTES // row_bytes)
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
            self.written.append(self.activations.close_window(self.files, self.equipment.writer))

    def _batch(self, batch: Batch) -> None:
        try:
            self._measure(batch)
        except NonFiniteError:
            raise
        except Exception as error:
            poisoned = find_poison(self.body, batch)
            if not poisoned:
                raise
            if self.equipment.settings.on_error != "skip":
                raise PoisonedDocumentError.of(self.equipment.settings.root, poisoned) from error
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
        self._finite = torch.ones((), dtype=torch.bool)
        self.body.run(
            batch.input_ids.to(self.body.device),
            on_point=self._point,
            on_layer=self._layer if sublayers else None,
            position_ids=batch.position_ids,
        )
        inside = sum(self.clock.seconds()[k] - before[k] for k in ("copy", "statistics"))
        self.clock.add("compute", time.perf_counter() - started - inside)
        with self.clock.measure("copy"):
            if self.activations is not None:
                self.activations.end()
        if not bool(self._finite):
            self._refuse_nonfinite(batch)
        with self.clock.measure("statistics"):
            if self.statistics is not None:
                self.statistics.end()
        with self.clock.measure("lens"):
            if self.lens is not None:
                self.lens.end()
        self.rows_run += batch.tokens
        self.equipment.rows_done += batch.tokens

    def _point(self, point: int, hidden: torch.Tensor) -> None:
        with self.clock.measure("copy"):
            if self.activations is not None:
                self.activations.take("residual", point, hidden)
            if self.lens is not None:
                self.lens.take(hidden)
            # The stream only adds, so a value that is not finite stays so up to the last point.
            if point == self.body.info.layers:
                self._finite = torch.isfinite(hidden).all()

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
        if not self.equipment.settings.allow_nonfinite:
            raise NonFiniteError.of(self.equipment.settings.root, counts, documents)
        for place, number in counts.items():
            self.nonfinite[place] = self.nonfinite.get(place, 0) + number

    def _check_first(self, batch: Batch) -> None:
        if not self.equipment.checked:
            self.body.check_identity(
                batch.input_ids.to(self.body.device), position_ids=batch.position_ids
            )
            self.equipment.checked = True

    def write_numbers(self) -> None:
        """Write the task's statistics and lens values."""
        if self.statistics is not None:
            for name, values in self.statistics.arrays().items():
                plan = self.equipment.statistics[name]
                self._write_shards(plan, values, self.statistics.stored.first)
        if self.lens is not None:
            for name, values in self.lens.values.items():
                plan = self.equipment.lens_plans[name]
                self._write_shards(plan, values, self.lens.stored.first)

    def _write_shards(self, plan: ArrayPlan, values: NDArray[np.float32], first: int) -> None:
        shard = plan.shard[-1]
        for start in range(0, values.shape[-1], shard):
            index = (*(0,) * (values.ndim - 1), (first + start) // shard)
            self.files.write_shard(plan, index, values[..., start : start + shard])
