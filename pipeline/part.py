"""One attempt at a contiguous range of one task's layers: from micro-batches to the commit.

Every schedule is made of these. The resident worker runs a task as one part, a stage runs its own
layers as one, a sweep one part per layer. Layer l brings forth point l+1 and what its sublayers
add; the part of layer 0 also has point 0, and the part of the last layer writes the statistics and
lens values of the whole task.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from depthscope.storage.arrays import ArrayPlan
from depthscope.storage.commits import Commit, CommitLog
from depthscope.storage.tasks import Task
from numpy.typing import NDArray

from .activations import ActivationRecorder
from .batches import Batch
from .capture import OnLayer, OnPoint
from .equipment import Equipment
from .faults import NonFiniteError, count_nonfinite
from .hardware import hardware
from .needs import stored_ranges
from .placement import StoredRange
from .recorders import LensRecorder, StatisticsRecorder
from .task_windows import Window
from .write_behind import TaskFiles

#: Runs the part's layers over a batch: calls back for every point and layer of the part.
RunLayers = Callable[[OnPoint | None, OnLayer | None], None]


@dataclass
class TaskNumbers:
    """What is measured of a whole task, through all of its layers.

    Attributes
    ----------
    ranges
        The stored rows that the task owns, by group.
    statistics, lens
        None where the store has none.
    """

    ranges: dict[str, StoredRange]
    statistics: StatisticsRecorder | None
    lens: LensRecorder | None

    @classmethod
    def of(cls, equipment: Equipment, task: Task) -> TaskNumbers:
        """Empty recorders for a task."""
        ranges = dict(stored_ranges(equipment.selections, task))
        layers = equipment.info.layers
        return cls(
            ranges,
            StatisticsRecorder(layers, ranges["statistics"]) if equipment.statistics else None,
            LensRecorder(layers + 1, ranges["lens"]) if equipment.lens_plans else None,
        )


class Part:
    """One attempt at layers ``first`` to ``last`` (end excluded) of a task.

    Used so: `open` a window, `run` each of its batches, `close` the window; at the end `finish`,
    or `abort`.
    """

    def __init__(
        self, equipment: Equipment, task: Task, layers: tuple[int, int], numbers: TaskNumbers
    ) -> None:
        self.equipment, self.task, self.layers, self.numbers = equipment, task, layers, numbers
        self.clock = equipment.clock
        self._attempt = secrets.token_hex(4)
        self.files = TaskFiles.create(
            equipment.settings.root, task.index, self._attempt, self.clock
        )
        self._before, self._started = self.clock.seconds(), time.time()
        self.activations: ActivationRecorder | None = None
        planes = equipment.planes_of(layers)
        if planes and "activations" in numbers.ranges:
            self.activations = ActivationRecorder(
                equipment.activations,
                planes,
                numbers.ranges["activations"],
                equipment.pool,
                equipment.staging,
            )
        self.invalid: dict[int, str] = {}
        self.nonfinite: dict[str, int] = {}
        self.rows_run = 0
        self._finite = torch.ones((), dtype=torch.bool)
        self._written: list[Future[object]] = []

    @property
    def is_last(self) -> bool:
        """Whether the part ends at point L."""
        return self.layers[1] == self.equipment.info.layers

    def open(self, window: Window) -> None:
        """Make room for a window's rows; those of documents that fail are NaN."""
        self.invalid.update(window.poisoned)
        if self.activations is not None:
            self.activations.open_window(window.pieces)
            self.activations.fill_nan(
                [piece for piece in window.pieces if piece.document in window.poisoned]
            )

    def run(self, batch: Batch, layers: RunLayers) -> None:
        """Run the part's layers over a batch and take what is asked for.

        Raises
        ------
        NonFiniteError
            The part's last point holds values that are not finite, and these are refused.
        """
        numbers, started, before = self.numbers, time.perf_counter(), self.clock.seconds()
        for recorder in (self.activations, numbers.statistics, numbers.lens):
            if recorder is not None:
                recorder.begin(batch)
        sublayers = numbers.statistics is not None or (
            self.activations is not None and self.activations.wants_sublayers
        )
        self._finite = torch.ones((), dtype=torch.bool)
        layers(self._point, self._layer if sublayers else None)
        inside = sum(self.clock.seconds()[k] - before[k] for k in ("copy", "statistics"))
        self.clock.add("compute", time.perf_counter() - started - inside)
        with self.clock.measure("copy"):
            if self.activations is not None:
                self.activations.end()
        if not bool(self._finite):
            self._refuse_nonfinite(batch, layers)
        with self.clock.measure("statistics"):
            if numbers.statistics is not None:
                numbers.statistics.end()
        self.rows_run += batch.tokens
        share = (self.layers[1] - self.layers[0]) / self.equipment.info.layers
        self.equipment.rows_done += batch.tokens * share

    def _point(self, point: int, hidden: torch.Tensor) -> None:
        with self.clock.measure("copy"):
            if self.activations is not None:
                self.activations.take("residual", point, hidden)
            if self.numbers.lens is not None:
                self.numbers.lens.take(hidden)
            # The stream only adds, so a value that is not finite stays so up to the last point.
            if point == self.layers[1]:
                self._finite = torch.isfinite(torch.stack(torch.aminmax(hidden))).all()

    def _layer(self, layer: int, h: torch.Tensor, a: torch.Tensor, m: torch.Tensor) -> None:
        if self.numbers.statistics is not None:
            with self.clock.measure("statistics"):
                self.numbers.statistics.take(layer, h, a, m)
        if self.activations is not None and self.activations.wants_sublayers:
            with self.clock.measure("copy"):
                self.activations.take("attention_output", layer, a)
                self.activations.take("mlp_output", layer, m)

    def _refuse_nonfinite(self, batch: Batch, layers: RunLayers) -> None:
        counts, documents = count_nonfinite(
            lambda on_point: layers(on_point, None), batch, self.task.rows
        )
        if not counts:
            return
        if not self.equipment.settings.allow_nonfinite:
            raise NonFiniteError.of(self.equipment.settings.root, counts, documents)
        for place, number in counts.items():
            self.nonfinite[place] = self.nonfinite.get(place, 0) + number

    def close(self) -> None:
        """Hand the window's rows to the writer; waits while it has two blocks to write."""
        if self.activations is not None:
            self._written.append(self.activations.close_window(self.files, self.equipment.writer))

    def abort(self) -> None:
        """Give up: nothing of this attempt stays."""
        if self.activations is not None:
            self.activations.release()
        # Behind what the attempt has queued already, so that nothing is written after it.
        self.equipment.writer.submit(self.files.abort)

    def finish(self) -> Future[Commit | None]:
        """Publish and commit behind the model's back; None when another attempt was first."""
        first, last = self.layers
        commit = Commit(
            task=self.task.index,
            points=(first + 1 if first else 0, last),
            rows=self.task.rows,
            shards=(),
            nonfinite=self.nonfinite,
            invalid_documents=tuple(sorted(self.invalid.items())),
            attempt=self._attempt,
            host=socket.gethostname(),
            pid=os.getpid(),
            node=self.equipment.settings.node,
            hardware=hardware(self.equipment.settings.threads),
            rows_run=self.rows_run,
            bytes_read=self.equipment.reads.take(),
        )
        return self.equipment.writer.submit(partial(self._commit, commit))

    def _commit(self, commit: Commit) -> Commit | None:
        try:
            for future in self._written:
                future.result()
            if self.is_last:
                self._write_numbers()
            shards = self.files.publish()
        except BaseException:
            self.files.abort()
            raise
        seconds = {k: round(v - self._before[k], 6) for k, v in self.clock.seconds().items()}
        times = {"started": self._started, "finished": time.time()}
        commit = replace(commit, shards=shards, timings={**seconds, **times})
        return commit if CommitLog(self.equipment.settings.root).add(commit) else None

    def _write_numbers(self) -> None:
        statistics, lens = self.numbers.statistics, self.numbers.lens
        if statistics is not None:
            for name, values in statistics.arrays().items():
                self._write_shards(self.equipment.statistics[name], values, statistics.stored.first)
        if lens is not None:
            for name, values in lens.values.items():
                self._write_shards(self.equipment.lens_plans[name], values, lens.stored.first)

    def _write_shards(self, plan: ArrayPlan, values: NDArray[np.float32], first: int) -> None:
        shard = plan.shard[-1]
        for start in range(0, values.shape[-1], shard):
            index = (*(0,) * (values.ndim - 1), (first + start) // shard)
            self.files.write_shard(plan, index, values[..., start : start + shard])
