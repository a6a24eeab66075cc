"""One task on its way through a sweep: its micro-batches, their stream, and what is committed.

After every layer the task commits the layer's point, so a sweep that is killed goes on at the layer
it had reached. What the store lacks for that is carried (see `carried`). Where the store does not
hold the whole stream, the stream is carried as well, but no more often than every
``STREAM_SECONDS``, since it is as large as a stored point.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future

import torch
from depthscope.storage.commits import Commit, CommitLog
from depthscope.storage.tasks import Task

from .batches import Batch
from .capture import OnLayer, OnPoint
from .carried import CarriedFiles
from .description import DTYPES
from .equipment import Equipment
from .frame import Frame
from .layer_stack import LayerStack
from .lens import LensMeasure
from .memory import kept_bytes
from .part import Part, TaskNumbers
from .residual import EmbeddedResidual, HeldResidual, Residual, StoredResidual, StoredRows
from .task_windows import task_windows

#: Seconds between two copies of a stream that the store does not hold.
STREAM_SECONDS = 30.0


class TaskSweep:
    """A task in a sweep.

    Attributes
    ----------
    point
        The point that the stream has reached: the next layer to run.
    done
        Resolved with the commits of this attempt, or with what went wrong.
    """

    def __init__(
        self,
        equipment: Equipment,
        frame: Frame,
        task: Task,
        done: Future[tuple[Commit, ...]],
    ) -> None:
        self.equipment, self.task, self.done = equipment, task, done
        self._frame, self._place = frame, equipment.settings.residual
        self.numbers = TaskNumbers.of(equipment, task)
        self.windows = list(task_windows(equipment, task, list(self.numbers.ranges.values())))
        self.batches: list[Batch] = [b for window in self.windows for b in window.batches]
        self.files = CarriedFiles(equipment.settings.root, task.index)
        self.rows = StoredRows(
            equipment, self.batches, task.rows, self.numbers.ranges.get("activations"), self.files
        )
        self._committing: list[Future[Commit | None]] = []
        self._saved_at = time.monotonic()
        self._latest_stream = 0
        self._last: Part | None = None
        self.point = self._resume_point()
        self.residual: Residual = self._restored()
        if self._place == ("host" if equipment.device.type == "cpu" else "device"):
            info = equipment.info
            room = self.tokens * kept_bytes(info.hidden, DTYPES[info.dtype].itemsize)
            frame.kept.expect(self.batches, room)

    @property
    def tokens(self) -> int:
        """Places of all micro-batches, padding included."""
        return sum(batch.input_ids.numel() for batch in self.batches)

    def _resume_point(self) -> int:
        """The last committed point from which all that follows can be made; 0 for the start."""
        log = CommitLog(self.equipment.settings.root)
        for point in range(log.reached(self.task.index) - 1, 0, -1):
            if (
                self.files.has("stream", point)
                and self._restore_numbers(point)
                and self.rows.carried_stream(point) is not None
            ):
                return point
        self.files.clear()
        return 0

    def _restore_numbers(self, point: int) -> bool:
        """Take statistics and the rows for the lens of every point up to this one."""
        statistics = self.numbers.statistics
        for reached in range(1, point + 1):
            loaded = self.files.load("numbers", reached)
            if loaded is None:
                return False
            if statistics is not None:
                statistics.values[:, reached - 1] = loaded["statistics"].numpy()
        return True

    def _restored(self) -> Residual:
        device = self.equipment.device
        held = HeldResidual(
            len(self.batches), device if self._place == "device" else torch.device("cpu"), device
        )
        if self._place == "store":
            if not self.point:
                return EmbeddedResidual(self._frame, self.batches)
            return StoredResidual(self.rows, self.point, device)
        if not self.point:
            return held
        carried = self.rows.carried_stream(self.point)
        for number in range(len(self.batches)):
            held.put(number, self.rows.assemble(self.point, number, carried).to(device))
        return held

    def embed(self, frame: Frame) -> None:
        """Point 0 of every micro-batch."""
        for number, batch in enumerate(self.batches):
            self.residual.put(number, frame.embed(batch))

    def streams(self) -> Iterable[tuple[Batch, torch.Tensor]]:
        """Its micro-batches and their streams at the point reached."""
        return ((batch, self.residual.get(number)) for number, batch in enumerate(self.batches))

    def run_layer(self, layer: int, stack: LayerStack) -> None:
        """Take every micro-batch through a layer, and commit the point after it.

        The commit of the last layer waits for `finish`.
        """
        part = Part(self.equipment, self.task, (layer, layer + 1), self.numbers)
        lens_rows: dict[str, torch.Tensor] = {}
        stream: dict[str, torch.Tensor] = {}
        keeps = not part.is_last and self._keeps_stream(layer + 1)
        number = 0
        try:
            for window in self.windows:
                part.open(window)
                for batch in window.batches:
                    out = self._run_batch(part, layer, number, batch, stack)
                    if keeps:
                        stream[str(number)] = self.rows.keep(layer + 1, number, out)
                    if self.numbers.lens is not None:
                        taken = self.numbers.lens.carry()
                        if taken is not None:
                            lens_rows[str(number)] = taken.cpu()
                    if not part.is_last:
                        self.residual.put(number, out)
                    number += 1
                part.close()
            self._carry(layer + 1, lens_rows, stream if keeps else None)
        except BaseException:
            part.abort()
            raise
        self.point = layer + 1
        if part.is_last:
            self._last = part
            self._frame.kept.forget(self.batches)
            self.residual = HeldResidual(0, torch.device("cpu"), self.equipment.device)
        else:
            self._committing.append(part.finish())
            self._settle_stored()

    def _run_batch(
        self, part: Part, layer: int, number: int, batch: Batch, stack: LayerStack
    ) -> torch.Tensor:
        hidden = self.residual.get(number)
        result: list[torch.Tensor] = []

        def layers(on_point: OnPoint | None, on_layer: OnLayer | None) -> None:
            if layer == 0 and on_point is not None:
                on_point(0, hidden)
            result[:] = [stack.run(batch, hidden, on_point, on_layer)]

        part.run(batch, layers)
        return result[0]

    def _keeps_stream(self, point: int) -> bool:
        cheap = self.rows.held_by_store(point)
        late = time.monotonic() - self._saved_at > STREAM_SECONDS
        return cheap or late or self._place == "store"

    def _carry(
        self,
        point: int,
        lens_rows: dict[str, torch.Tensor],
        stream: dict[str, torch.Tensor] | None,
    ) -> None:
        """Save behind the model's back, ahead of the point's commit."""
        kept = {f"lens.{number}": rows for number, rows in lens_rows.items()}
        if self.numbers.statistics is not None:
            values = self.numbers.statistics.values[:, point - 1]
            kept["statistics"] = torch.from_numpy(values.copy())
        earlier, files = self._latest_stream, self.files

        def save() -> None:
            files.save("numbers", point, kept)
            if stream is not None:
                files.save("stream", point, stream)
                files.remove("stream", earlier)

        self._committing.append(self.equipment.writer.submit(save))  # type: ignore[arg-type]
        if stream is not None:
            self._latest_stream, self._saved_at = point, time.monotonic()

    def _settle_stored(self) -> None:
        """Where the stream lives in the store, wait until it is there."""
        if self._place == "store":
            for future in self._committing:
                future.result()
            self.residual = StoredResidual(self.rows, self.point, self.equipment.device)

    def finish(self, lens: LensMeasure | None) -> None:
        """Measure the lens at every point, commit the last one, and hand the commits over."""
        if self._last is None:
            raise RuntimeError("the sweep has not reached the last point")
        if self.numbers.lens is not None and lens is not None:
            with self.equipment.clock.measure("lens"):
                self._measure_lens(lens)
        # Read behind the writer: everything carried has been saved by then.
        self._committing.append(self._last.finish())
        commits = [future.result() for future in self._committing]
        self.files.clear()
        self.done.set_result(tuple(commit for commit in commits if commit is not None))

    def _measure_lens(self, lens: LensMeasure) -> None:
        recorder = self.numbers.lens
        if recorder is None:
            return
        for future in self._committing:
            future.result()
        points = range(1, self.equipment.info.layers + 1)
        loaded = [self.files.load("numbers", point) for point in points]
        for number, batch in enumerate(self.batches):
            rows = [part[f"lens.{number}"] for part in loaded if part and f"lens.{number}" in part]
            recorder.begin(batch)
            if rows:
                recorder.put(torch.cat(rows))
                recorder.measure(lens)

    def fail(self, error: BaseException) -> None:
        """Hand the error over; committed points stay."""
        self._frame.kept.forget(self.batches)
        if self._last is not None:
            self._last.abort()
        if not self.done.done():
            self.done.set_exception(error)
