"""A stage: contiguous layers of the model in one process, over the devices of its node.

A stage reads the tensors of its own layers only (the first also the embedding), makes every task's
micro-batches itself, takes those of several tasks through its layers one after the other, and
commits its own points. Micro-batches are in flight over all of its devices, each of which has a run
of the layers and a thread. Memory does not depend on how many micro-batches there are: one waits at
each device and one computes, and a task's rows leave with their window.

A stage with all layers is the resident schedule over several devices.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from depthscope.storage.commits import Commit
from depthscope.storage.errors import Stopped, WorkFailed
from depthscope.storage.run_record import RunRecord
from depthscope.storage.tasks import Selections, Task

from .description import ModelInfo
from .device_split import device_room, node_devices, split_over_devices
from .device_stage import DeviceStage, OpenTask, Step
from .equipment import WorkerSettings
from .handoff import Handed
from .layer_loader import LayerLoader
from .layered_task import kind_of
from .read_meter import ReadMeter


class Stage:
    """Layers ``first`` to ``last`` (end excluded); its methods may be called by any thread.

    Parameters
    ----------
    settings
        Where the store and the model are, and the limits.
    layers
        First and last.
    devices
        Where they are laid; None: the GPUs of this node, or its processor.

    Raises
    ------
    RequestError
        The checkpoint is not whole, does not fit its config, or the layers do not fit the devices.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        layers: tuple[int, int],
        devices: Sequence[torch.device] | None = None,
    ) -> None:
        self.settings, self.layers = settings, layers
        reads = ReadMeter()
        info = ModelInfo(**RunRecord.load(settings.root).model)
        loaders = [LayerLoader(settings.folder, info, settings.trust_remote_code)]
        devices = devices or node_devices()
        first, last = layers
        self._kind, sizes = kind_of(settings), loaders[0].layer_bytes
        again = sum(sizes[max(0, first - self._kind.reach) : first])
        runs = split_over_devices(
            sizes[first:last],
            again if first else loaders[0].frame_bytes,
            len(devices),
            device_room(devices, settings.device_memory),
        )
        # Layers of a loader share its config with one frame, which serves one thread.
        while len(loaders) < len(runs):
            loaders.append(LayerLoader(settings.folder, info, settings.trust_remote_code))
        self.devices: list[DeviceStage] = []
        self._tasks: dict[str, OpenTask] = {}
        self._turn = threading.Condition()
        self._next, self._given_up = 0, list[tuple[int, int]]()
        self._closed = False
        try:
            for run, device, loader in zip(runs, devices, loaders, strict=False):
                own = (first + run[0], first + run[1])
                self.devices.append(DeviceStage(settings, self._kind, loader, own, device, reads))
            for before, after in pairwise(self.devices):
                before.following = after
            for loaded in [device.load() for device in self.devices]:
                loaded.result()
        except BaseException:
            self.close()
            raise

    @property
    def selections(self) -> Selections:
        """The store's tasks."""
        return self.devices[0].equipment.selections

    def begin(self, task: Task, key: str) -> int:
        """Open a task under a name; the number of its micro-batches.

        Raises
        ------
        PoisonedDocumentError
            A document fails, and documents that fail stop the run.
        """
        begun = self._kind.staged(self.devices[0].equipment, task)
        with self._turn:
            self._tasks[key] = OpenTask(begun)
        return begun.micro_batches

    def forward(
        self, sequence: int, key: str, number: int, carried: Handed | None
    ) -> Handed | None:
        """Take a micro-batch through the stage's layers; blocks until it is through.

        Parameters
        ----------
        sequence
            Its number among all that are ever sent to the stage, which it takes in this order
            however the calls arrive.
        key, number
            Its task, and its number there.
        carried
            From the stage before; None for the first.

        Returns
        -------
        Handed or None
            For the next stage; None from the last.

        Raises
        ------
        WorkFailed
            The task was given up meanwhile.
        Exception
            Whatever went wrong with the task, again for each of its micro-batches.
        """
        with self._turn:
            self._turn.wait_for(
                lambda: self._closed or self._next == sequence or key not in self._tasks
            )
            if key not in self._tasks:
                raise WorkFailed("the task was given up")
            step = Step(self._tasks[key], "run", number, carried)
            self._put(step)
            self._next += 1
            self._pass_given_up()
        result: Handed | None = step.done.result()
        return result

    def finish(self, key: str) -> tuple[Commit, ...]:
        """Commit the stage's points of a task, all of whose micro-batches have passed.

        Returns
        -------
        tuple of Commit
            One for each device, but none where another attempt was first.
        """
        with self._turn:
            step = Step(self._tasks.pop(key), "finish")
            self._put(step)
        commits = [future.result() for future in step.done.result()]
        return tuple(commit for commit in commits if commit is not None)

    def abort(self, key: str, sequences: tuple[int, int]) -> None:
        """Give a task up; nothing of it stays, and its rest is not waited for.

        Parameters
        ----------
        key
            The task; one that the stage does not know is as good as given up.
        sequences
            First and last (end excluded) of the task's micro-batches in the order of all.
        """
        with self._turn:
            self._given_up.append(sequences)
            if (task := self._tasks.pop(key, None)) is not None:
                step = Step(task, "abort")
                # Before anything of the next task, whose rows take the same way.
                self._put(step)
            self._pass_given_up()
        if task is not None:
            step.done.result()

    def progress(self) -> tuple[int, Mapping[str, float]]:
        """Rows through the model so far (a row through half of it is half), seconds by kind."""
        seconds: Counter[str] = Counter()
        for device in self.devices:
            seconds.update(device.equipment.clock.seconds())
        return round(sum(device.equipment.rows_done for device in self.devices)), seconds

    def close(self) -> None:
        """End; what is still on its way is given up."""
        with self._turn:
            self._closed = True
            self._turn.notify_all()
        for device in self.devices:
            device.close()

    def _put(self, step: Step) -> None:
        """Hand a step to the first device; the order of steps is that of the turn."""
        if self._closed:
            raise Stopped("the worker is closing")
        self.devices[0].put(step)

    def _pass_given_up(self) -> None:
        """Go on behind micro-batches that will never come."""
        for first, last in sorted(self._given_up):
            if first <= self._next < last:
                self._next = last
        self._given_up = [(first, last) for first, last in self._given_up if last > self._next]
        self._turn.notify_all()
