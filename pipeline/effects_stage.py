"""A task of an intervention sweep on its way through the stages of a model.

What goes down the line are its units, with their live branches, their baselines and what was noted
so far; a branch is born in the stage that has its first layer. The last stage compares the outputs,
and commits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future

from depthscope.storage.commits import Commit
from torch import Tensor

from .effects_task import EffectsWork
from .equipment import Equipment
from .staged_task import DeviceLayers


class StagedEffects:
    """A task that a stage has begun.

    Parameters
    ----------
    equipment
        Of any of its devices.
    open_task
        Makes the task with a device's equipment: every device has a table of its own.
    """

    def __init__(self, equipment: Equipment, open_task: Callable[[Equipment], EffectsWork]) -> None:
        self._open_task, self._opened = open_task, open_task(equipment)
        self.micro_batches = len(self._opened.units)

    def part(self, device: DeviceLayers) -> EffectsStage:
        """What a device of the stage has of it."""
        opened = self._opened
        if device.equipment is not opened.equipment:
            opened = self._open_task(device.equipment)
        return EffectsStage(opened, device)


class EffectsStage:
    """The layers of one device of a task; for one thread."""

    def __init__(self, work: EffectsWork, device: DeviceLayers) -> None:
        self._work, self._device = work, device

    def run(self, number: int, carried: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
        """Take a unit through the layers.

        Parameters
        ----------
        number
            The unit's number in its task.
        carried
            Its state after the layers before, see `EffectsUnit.take_state`; None for the first.

        Returns
        -------
        dict of Tensor or None
            Its state for the layers that follow; None where these are the model's last.
        """
        device, work = self._device, self._work
        unit = work.units[number]
        if carried is None:
            work.embed_unit(unit, device.frame)
        else:
            unit.put_state(carried, device.equipment.device)
        for layer, stack in device.stacks.items():
            if layer < device.layers[0]:
                unit.pass_layer(layer, stack)
            else:
                work.run_unit(unit, layer, stack)
        if device.is_last:
            work.finish_unit(unit, device.head)
            return None
        return unit.take_state()

    def finish(self) -> Future[Commit | None]:
        """Commit the task, where these layers are the model's last."""
        if self._device.is_last:
            return self._work.equipment.writer.submit(self._commit)
        nothing: Future[Commit | None] = Future()
        nothing.set_result(None)
        return nothing

    def _commit(self) -> Commit | None:
        return next(iter(self._work.commit()), None)

    def abort(self) -> None:
        """Let go of what the units hold; nothing of them has been written."""
        self._work.units = []
