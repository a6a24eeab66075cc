"""One task on its way through the layers of one device: micro-batch after micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import torch
from depthscope.storage.commits import Commit
from depthscope.storage.tasks import Task

from .batches import Batch
from .capture import OnLayer, OnPoint
from .equipment import Equipment
from .handoff import Carried
from .lens import LensMeasure
from .needs import stored_ranges
from .part import Part, TaskNumbers
from .staged_task import DeviceLayers
from .task_windows import Window, task_windows


class StagedExtraction:
    """A task that a stage has begun.

    Raises
    ------
    PoisonedDocumentError
        A document fails, and documents that fail stop the run.
    """

    def __init__(self, equipment: Equipment, task: Task) -> None:
        ranges = list(stored_ranges(equipment.selections, task).values())
        self._task, self._windows = task, list(task_windows(equipment, task, ranges))
        self.micro_batches = sum(len(window.batches) for window in self._windows)

    def part(self, device: DeviceLayers) -> StageTask:
        """What a device of the stage has of it."""
        return StageTask(device, self._task, self._windows)


class StageTask:
    """Layers ``first`` to ``last`` (end excluded) of a task; for one thread.

    Parameters
    ----------
    device
        The layers; its head measures lens values after the last layer of the model.
    task, windows
        The task, and the windows of its micro-batches.
    """

    def __init__(self, device: DeviceLayers, task: Task, windows: Sequence[Window]) -> None:
        equipment, self._layers = device.equipment, device.layers
        self._clock, self._run_layers = equipment.clock, device.run
        self._lens: LensMeasure | None = device.head
        self._part = Part(equipment, task, self._layers, TaskNumbers.of(equipment, task))
        self._windows = list(windows)
        self._batches: list[Batch] = []
        self._done = 0
        self._ended = False

    def run(self, number: int, carried: Carried | None) -> Carried | None:
        """Take the next micro-batch through the layers.

        Parameters
        ----------
        number
            The micro-batch's number in its task; they come in order.
        carried
            From the layers before; None for the first layer.

        Returns
        -------
        Carried or None
            For the layers that follow; None where these are the model's last.

        Raises
        ------
        NonFiniteError
            The stream holds values that are not finite, and these are refused.
        """
        if number != self._done:
            raise RuntimeError(f"micro-batch {number} came where {self._done} was due")
        if not self._batches:
            self._open()
        batch = self._batches.pop(0)
        hidden = self._measure(batch, carried)
        self._done += 1
        if not self._batches:
            # At once: the rows of the next task may follow on the same way to the host.
            self._part.close()
            self._pass_empty()
        if self._part.is_last:
            self._measure_lens()
            return None
        statistics, lens = self._part.numbers.statistics, self._part.numbers.lens
        return Carried(
            hidden,
            None if statistics is None else statistics.carry(self._layers[1]),
            None if lens is None else lens.carry(),
        )

    def finish(self) -> Future[Commit | None]:
        """Commit behind the model's back, once every micro-batch has passed."""
        self._pass_empty()
        if self._batches or self._windows:
            raise RuntimeError("micro-batches are missing")
        self._ended = True
        return self._part.finish()

    def abort(self) -> None:
        """Give the task up; a second time does nothing."""
        if not self._ended:
            self._ended = True
            self._part.abort()

    def _pass_empty(self) -> None:
        """Windows whose documents all fail have rows, but no micro-batch."""
        while self._windows and not self._windows[0].batches:
            self._part.open(self._windows.pop(0))
            self._part.close()

    def _open(self) -> None:
        self._pass_empty()
        window = self._windows.pop(0)
        self._part.open(window)
        self._batches = list(window.batches)

    def _measure(self, batch: Batch, carried: Carried | None) -> torch.Tensor:
        waiting = [carried] if carried is not None else []
        stream = None if carried is None else carried.hidden
        hidden: list[torch.Tensor] = []

        def layers(on_point: OnPoint | None, on_layer: OnLayer | None) -> None:
            # Recorders know the batch by now, and take what came with it once, however often the
            # layers are run.
            while waiting:
                self._put(waiting.pop())
            hidden[:] = [self._run_layers(batch, stream, on_point, on_layer)]

        self._part.run(batch, layers)
        return hidden[0]

    def _put(self, carried: Carried) -> None:
        statistics, lens = self._part.numbers.statistics, self._part.numbers.lens
        if statistics is not None and carried.statistics is not None:
            statistics.put(carried.statistics)
        if lens is not None:
            lens.put(carried.lens)

    def _measure_lens(self) -> None:
        recorder = self._part.numbers.lens
        if recorder is not None and self._lens is not None:
            with self._clock.measure("lens"):
                recorder.measure(self._lens)
