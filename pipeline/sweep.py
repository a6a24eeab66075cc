"""The sweep schedule: layers outermost, over the micro-batches of many tasks.

Every layer's weights are read once per sweep and applied to all rows, while the next layer's are
being read: a model of any size runs on one device, at the cost per token of a resident one as soon
as the rows hide the reading. In memory are two layers and the stream of the rows. Source of the
arithmetic: `memory` and `plan`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from depthscope.storage.commits import Commit
from depthscope.storage.errors import Stopped
from depthscope.storage.run_record import RunRecord
from depthscope.storage.tasks import Selections, Task
from torch import nn

from .checked_stack import CheckedStack
from .clock import Clock
from .description import ModelInfo
from .equipment import Equipment, WorkerSettings
from .expert_loader import has_experts
from .expert_streaming import StreamedStack
from .layer_loader import LayerLoader
from .layered_task import LayeredTask, kind_of
from .read_meter import ReadMeter

#: How long a sweep waits for the next task of its share; the dispatcher sends them all at once.
GATHER_SECONDS = 1.0


class SweepWorker:
    """Takes tasks through the model together, layer by layer.

    Parameters
    ----------
    settings
        Where the store and the model are, the limits, and how many tasks run together. In the
        ``resident`` schedule layers stay in memory once they are read.

    Raises
    ------
    RequestError
        The checkpoint is not whole, or does not fit its config.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings, self.clock, self._kind = settings, Clock(), kind_of(settings)
        self._kept: dict[int, nn.Module] = {}
        self._queue: queue.Queue[tuple[Task, Future[tuple[Commit, ...]]] | None] = queue.Queue()
        self._stopping, self._closing = threading.Event(), threading.Lock()
        self._prefetch = ThreadPoolExecutor(1, "weights")
        self._checked: set[int] = set()
        loaded: Future[None] = Future()
        self._thread = threading.Thread(target=self._serve, args=(loaded,), name="sweep")
        self._thread.start()
        loaded.result()

    @property
    def selections(self) -> Selections:
        """The store's tasks."""
        return self.equipment.selections

    def run(self, task: Task) -> tuple[Commit, ...]:
        """Turn a task into committed data, together with those that other threads hand in.

        Returns
        -------
        tuple of Commit
            Those of this attempt, one per point; points that were committed before have none.

        Raises
        ------
        PoisonedDocumentError, NonFiniteError
            A document fails, and documents that fail stop the run.
        WorkFailed, OSError
            Weights cannot be read, or the store cannot be written; finished points are committed.
        """
        future: Future[tuple[Commit, ...]] = Future()
        with self._closing:
            if self._stopping.is_set():
                raise Stopped("the worker is closing")
            self._queue.put((task, future))
        return future.result()

    def progress(self) -> tuple[int, Mapping[str, float]]:
        """Rows through the model so far (a row through half of it is half), seconds by kind."""
        return round(self.equipment.rows_done), self.clock.seconds()

    def close(self) -> None:
        """End at the next micro-batch; finished points stay committed."""
        with self._closing:
            self._stopping.set()
            self._queue.put(None)
        self._thread.join()
        while not self._queue.empty():
            if (item := self._queue.get()) is not None:
                item[1].set_exception(Stopped("the worker is closing"))
        self._prefetch.shutdown()
        self.equipment.writer.close()

    def _serve(self, loaded: Future[None]) -> None:
        """The compute thread: all of torch's work stays on it."""
        torch.set_num_threads(self.settings.threads)
        try:
            self._load()
        except BaseException as error:
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        while tasks := self._gather():
            with torch.no_grad():
                self._sweep(tasks)

    def _load(self) -> None:
        settings, reads = self.settings, ReadMeter()
        info = ModelInfo(**RunRecord.load(settings.root).model)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.loader = LayerLoader(settings.folder, info, settings.trust_remote_code)
        self.frame = self.loader.frame(device)
        self.equipment = Equipment.load(settings, self.clock, device, reads)

    def _gather(self) -> list[tuple[Task, Future[tuple[Commit, ...]]]]:
        """Wait for a task, then for as many more as run together; none when the worker closes."""
        item = self._queue.get()
        tasks = []
        while item is not None:
            tasks.append(item)
            if len(tasks) == self.settings.tasks_at_once:
                break
            try:
                item = self._queue.get(timeout=GATHER_SECONDS)
            except queue.Empty:
                break
        if not self._stopping.is_set():
            return tasks
        # Whoever handed them in waits for an answer.
        for _, future in tasks:
            future.set_exception(Stopped("the worker is closing"))
        return []

    def _sweep(self, tasks: list[tuple[Task, Future[tuple[Commit, ...]]]]) -> None:
        sweeps: list[LayeredTask] = []
        for task, future in tasks:
            try:
                sweeps.append(self._kind.open(self.equipment, self.frame, task, future))
            except Exception as error:
                future.set_exception(error)
        try:
            self._embed(together(sweeps, 0))
            self._layers(sweeps)
            self._finish(together(sweeps, self.loader.layers))
        except BaseException as error:
            for sweep in sweeps:
                sweep.fail(error)
            if not isinstance(error, Exception):
                raise

    def _embed(self, sweeps: list[LayeredTask]) -> None:
        """Point 0 of every task; the embedding makes room before the layers come."""
        if not sweeps:
            return
        self.frame.load()
        if self.settings.residual == "store":
            return  # Embedded batch by batch, when the first layer asks for it.
        try:
            for sweep in sweeps:
                sweep.embed(self.frame)
        finally:
            self.frame.release()

    def _layers(self, sweeps: list[LayeredTask]) -> None:
        layers = self.loader.layers
        first = min((sweep.point for sweep in sweeps), default=layers)
        if first == layers:
            return
        if self.settings.expert_memory is not None:
            for layer in range(first, layers):
                self._stream_layer(together(sweeps, layer), layer, self.settings.expert_memory)
                self.frame.release()
            return
        self.loader.memory.keeping = True
        coming = self._prefetch.submit(self._load_layer, first)
        for layer in range(first, layers):
            block = coming.result()
            if layer + 1 < layers:
                coming = self._prefetch.submit(self._load_layer, layer + 1)
            else:
                self.loader.memory.release()
            for sweep in together(sweeps, layer):
                self._guarded(sweep, layer, block)
            self.frame.release()
            del block

    def _stream_layer(self, sweeps: list[LayeredTask], layer: int, expert_memory: int) -> None:
        """A layer whose experts are never in memory all at once."""
        if not has_experts(self.loader, layer):
            for sweep in sweeps:
                self._guarded(sweep, layer, self._load_layer(layer))
            return
        streamed = StreamedStack(
            self.loader, self.frame, layer, self.equipment.device, expert_memory
        )
        for sweep in sweeps:
            for batch, hidden in sweep.streams():
                streamed.route(batch, hidden)
        streamed.compute()
        for sweep in sweeps:
            try:
                sweep.run_layer(layer, streamed)
            except Exception as error:
                sweep.fail(error)

    def _load_layer(self, layer: int) -> nn.Module:
        if layer in self._kept:
            return self._kept[layer]
        device = self.equipment.device
        if device.type != "cuda":
            block = self.loader.load_layer(layer, device)
        else:
            # A stream of its own, so that the copy runs beside the layer that computes.
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            with torch.cuda.stream(stream):
                block = self.loader.load_layer(layer, device)
            stream.synchronize()
        if self.settings.schedule == "resident":
            self._kept[layer] = block
        return block

    def _guarded(self, sweep: LayeredTask, layer: int, block: nn.Module) -> None:
        """One task's share of a layer; its failure is its own."""
        stack = CheckedStack(
            self.loader,
            self.frame,
            {layer: block},
            self.equipment.device,
            checked=self._checked,
            closing=self._stopping.is_set,
        )
        try:
            sweep.run_layer(layer, stack)
        except Exception as error:
            sweep.fail(error)

    def _finish(self, sweeps: list[LayeredTask]) -> None:
        """What needs the head comes last: it takes the place of the layers."""
        head = self._kind.head(self.equipment) if sweeps else None
        for sweep in sweeps:
            try:
                sweep.finish(head)
            except Exception as error:
                sweep.fail(error)


def together(tasks: Sequence[LayeredTask], layer: int) -> list[LayeredTask]:
    """Those that need this layer next and have not failed."""
    return [task for task in tasks if task.point == layer and not task.done.done()]
