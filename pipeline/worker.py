"""The resident schedule on one device: a worker holds the whole model and runs a task in one pass.

Plain code in one process; engines only place it. Writing, publishing and the commit are left to
the write-behind thread, while the next task computes. Over several devices the resident schedule
is a stage with all layers (see `schedules`). As the last resort accelerate moves weights that fit
no device in from host memory and disk, layer by layer and for every micro-batch again: a sweep
reads them once.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psutil
import torch
from depthscope.storage.commits import Commit
from depthscope.storage.layout import StorePaths
from depthscope.storage.run_record import RunRecord
from depthscope.storage.tasks import Selections, Task

from .batches import Batch
from .capture import OnLayer, OnPoint
from .clock import Clock
from .description import DTYPES, ModelInfo
from .device_split import device_room, node_devices
from .equipment import Equipment, WorkerSettings
from .faults import NonFiniteError, PoisonedDocumentError, find_poison
from .lens import LensMeasure
from .model import Body, load_body
from .part import Part, TaskNumbers
from .read_meter import ReadMeter
from .task_windows import task_windows, without


class Worker:
    """Runs tasks, one at a time on a compute thread, while earlier ones are being written.

    Parameters
    ----------
    settings
        Where the store and the model are, and the limits.

    Raises
    ------
    RequestError
        The model cannot be loaded.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.clock = Clock()
        # All of torch's work stays on one thread, so that there is one team of intra-op threads.
        self._compute = ThreadPoolExecutor(
            1, "compute", initializer=torch.set_num_threads, initargs=(settings.threads,)
        )
        self._checked = False
        self._compute.submit(self._load).result()

    def _load(self) -> None:
        settings, reads = self.settings, ReadMeter()
        info = ModelInfo(**RunRecord.load(settings.root).model)
        limits, folder = _limits(settings, info), settings.offload_folder
        if limits is not None and folder is None:
            folder = StorePaths(settings.root).partial / "offloaded"
        self.body: Body = load_body(
            settings.folder,
            info,
            max_memory=limits,
            offload_folder=folder,
            trust_remote_code=settings.trust_remote_code,
        )
        self.equipment = Equipment.load(settings, self.clock, self.body.device, reads)
        self.lens: LensMeasure | None = self.equipment.lens_measure()

    @property
    def selections(self) -> Selections:
        """The store's tasks."""
        return self.equipment.selections

    def run(self, task: Task) -> tuple[Commit, ...]:
        """Turn a task into committed data; blocks until the commit is on the disk.

        Returns
        -------
        tuple of Commit
            Empty when another attempt committed the task first.

        Raises
        ------
        PoisonedDocumentError, NonFiniteError
            A document fails, and documents that fail stop the run.
        OSError
            The store cannot be written.
        """
        commit = self._compute.submit(self._run, task).result().result()
        return () if commit is None else (commit,)

    def progress(self) -> tuple[int, Mapping[str, float]]:
        """Rows through the model so far, and seconds by kind of work."""
        return round(self.equipment.rows_done), self.clock.seconds()

    def close(self) -> None:
        """Finish what is queued."""
        self._compute.shutdown()
        self.equipment.writer.close()

    def _run(self, task: Task) -> Future[Commit | None]:
        numbers = TaskNumbers.of(self.equipment, task)
        part = Part(self.equipment, task, (0, self.equipment.info.layers), numbers)
        try:
            with torch.inference_mode():
                for window in task_windows(self.equipment, task, list(numbers.ranges.values())):
                    part.open(window)
                    for batch in window.batches:
                        self._batch(part, batch)
                    part.close()
        except BaseException:
            part.abort()
            raise
        return part.finish()

    def _batch(self, part: Part, batch: Batch) -> None:
        try:
            self._measure(part, batch)
        except NonFiniteError:
            raise
        except Exception as error:
            poisoned = find_poison(self.body, batch)
            if not poisoned:
                raise
            if self.settings.on_error != "skip":
                raise PoisonedDocumentError.of(self.settings.root, poisoned) from error
            part.invalid.update(poisoned)
            if part.activations is not None:
                bad = [piece for piece in batch.pieces if piece.document in poisoned]
                part.activations.fill_nan(bad)
            for rest in without(batch, poisoned):
                self._measure(part, rest)

    def _measure(self, part: Part, batch: Batch) -> None:
        ids = batch.input_ids.to(self.body.device)
        if not self._checked:
            self.body.check_identity(ids, position_ids=batch.position_ids)
            self._checked = True

        def forward(on_point: OnPoint | None, on_layer: OnLayer | None) -> None:
            self.body.run(ids, on_point, on_layer, position_ids=batch.position_ids)

        part.run(batch, forward)
        if part.numbers.lens is not None and self.lens is not None:
            with self.clock.measure("lens"):
                part.numbers.lens.measure(self.lens)


def _limits(settings: WorkerSettings, info: ModelInfo) -> dict[Any, int | str] | None:
    """Bytes of each device for accelerate's plan; None where it may take what there is."""
    memory, device_memory = settings.memory, settings.device_memory
    if memory is None and device_memory is None:
        return None
    host = psutil.virtual_memory().available if memory is None else memory
    devices = node_devices()
    room = device_room(devices, device_memory) if devices[0].type == "cuda" else None
    if room is not None:
        return {**dict(enumerate(room)), "cpu": host}
    return {"cpu": host} if info.parameters * DTYPES[info.dtype].itemsize > host else None
