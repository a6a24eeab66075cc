"""Contiguous layers on one device, with a compute thread of their own.

Work comes through a queue of one and is handed to the device after it, so that a device that is
slower holds those before it back, and as many micro-batches are on their way as there are devices.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from depthscope.storage.commits import Commit
from depthscope.storage.errors import Stopped
from torch import Tensor, nn

from .batches import Batch
from .capture import OnLayer, OnPoint
from .checked_stack import CheckedStack
from .clock import Clock
from .equipment import Equipment, WorkerSettings
from .handoff import Handed
from .layer_loader import LayerLoader
from .layered_task import Kind
from .read_meter import ReadMeter
from .staged_task import DeviceLayers, StagedTask, StagePart


@dataclass
class OpenTask:
    """A task that a stage has begun.

    Attributes
    ----------
    task
        The task.
    error
        What went wrong; everything that follows of the task ends with it.
    parts
        What each device has of it, by the device's first layer.
    """

    task: StagedTask
    error: BaseException | None = None
    parts: dict[int, StagePart] = field(default_factory=dict)


@dataclass
class Step:
    """A piece of work that passes through the devices of a stage, one after the other.

    Attributes
    ----------
    open, kind
        Whose it is, and what it is.
    number, carried
        Of a micro-batch: its number, and what the layers before made of it.
    commits
        Of a finished task: one for each device, once they are on the disk.
    done
        Resolved when the last device is through with it.
    """

    open: OpenTask
    kind: Literal["run", "finish", "abort"]
    number: int = 0
    carried: Handed | None = None
    commits: list[Future[Commit | None]] = field(default_factory=list)
    done: Future[Any] = field(default_factory=Future)

    def end(self) -> None:
        """Hand the result to whoever waits for it."""
        if self.open.error is not None and self.kind != "abort":
            self.done.set_exception(self.open.error)
        else:
            self.done.set_result(self.commits if self.kind == "finish" else self.carried)


class DeviceStage:
    """Layers ``first`` to ``last`` (end excluded) on one device.

    Parameters
    ----------
    settings
        Where the store and the model are, and the limits.
    kind
        Of the tasks.
    loader
        Of this device alone; its weights are read by `load`.
    layers
        First and last.
    device
        Where they compute.
    reads
        Counts what the process reads.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        kind: Kind,
        loader: LayerLoader,
        layers: tuple[int, int],
        device: torch.device,
        reads: ReadMeter,
    ) -> None:
        self.settings, self.layers, self.device = settings, layers, device
        self._kind = kind
        self.following: DeviceStage | None = None
        self._loader, self._frame = loader, loader.frame(device)
        self.equipment = Equipment.load(settings, Clock(), device, reads)
        self._closing = False
        # One waits while one computes: more would only take memory.
        self._queue: queue.Queue[Step | Future[None] | None] = queue.Queue(maxsize=1)
        self._thread = threading.Thread(target=self._serve, name=f"layers-{layers[0]}")
        self._thread.start()

    def load(self) -> Future[None]:
        """Read the weights, on the device's own thread."""
        loaded: Future[None] = Future()
        self._queue.put(loaded)
        return loaded

    def put(self, step: Step) -> None:
        """Hand in work; waits while the device has enough."""
        self._queue.put(step)

    def close(self) -> None:
        """End; what is still on its way ends with `Stopped`."""
        self._closing = True
        self._queue.put(None)
        self._thread.join()
        self.equipment.writer.close()

    def _serve(self) -> None:
        torch.set_num_threads(self.settings.threads)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        while (step := self._queue.get()) is not None:
            if isinstance(step, Future):
                self._load(step)
                continue
            with torch.inference_mode():
                self._do(step)
            if self.following is None:
                step.end()
            else:
                self.following.put(step)

    def _load(self, loaded: Future[None]) -> None:
        first, last = self.layers
        try:
            if first == 0:
                self._frame.load()
            read = range(max(0, first - self._kind.reach), last)
            blocks = {n: self._loader.load_layer(n, self.device) for n in read}
            checked: set[int] = set()
            self._stack = self._checked({n: blocks[n] for n in range(first, last)}, checked)
            at_end = last == self.equipment.info.layers
            self._own = DeviceLayers(
                self.equipment,
                self.layers,
                self._frame,
                self._run,
                {layer: self._checked({layer: block}, checked) for layer, block in blocks.items()},
                self._kind.head(self.equipment) if at_end else None,
            )
        except BaseException as error:
            loaded.set_exception(error)
        else:
            loaded.set_result(None)

    def _checked(self, blocks: Mapping[int, nn.Module], checked: set[int]) -> CheckedStack:
        return CheckedStack(
            self._loader,
            self._frame,
            blocks,
            self.device,
            checked=checked,
            closing=lambda: self._closing,
        )

    def _do(self, step: Step) -> None:
        """This device's share of a step; errors go with the task."""
        task = step.open
        try:
            if self._closing:
                raise Stopped("the worker is closing")
            if task.error is None and step.kind == "run":
                step.carried = self._part(task).run(step.number, step.carried)
            elif task.error is None and step.kind == "finish":
                step.commits.append(self._part(task).finish())
        except BaseException as error:
            task.error = task.error or error
        if (task.error is not None or step.kind == "abort") and self.layers[0] in task.parts:
            task.parts[self.layers[0]].abort()

    def _part(self, task: OpenTask) -> StagePart:
        first = self.layers[0]
        if first not in task.parts:
            task.parts[first] = task.task.part(self._own)
        return task.parts[first]

    def _run(
        self,
        batch: Batch,
        hidden: Tensor | None,
        on_point: OnPoint | None,
        on_layer: OnLayer | None,
    ) -> Tensor:
        hidden = self._frame.embed(batch) if hidden is None else hidden.to(self.device)
        self._stack.ready(batch, hidden)
        if self.layers[0] == 0 and on_point is not None:
            on_point(0, hidden)
        return self._stack.run(batch, hidden, on_point, on_layer)
