"""The worker of each schedule that needs one process only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Protocol

import torch
from depthscope.storage.commits import Commit
from depthscope.storage.errors import RequestError
from depthscope.storage.run_record import RunRecord
from depthscope.storage.tasks import Task

from .device_split import node_devices
from .equipment import WorkerSettings
from .gang_worker import GangWorker
from .sweep import SweepWorker
from .worker import Worker


class TaskWorker(Protocol):
    """What an engine needs of a worker."""

    def run(self, task: Task) -> tuple[Commit, ...]:
        """Turn a task into committed data; blocks until it is on the disk."""

    def progress(self) -> tuple[int, Mapping[str, float]]:
        """Rows through the model so far, and seconds by kind of work."""

    def close(self) -> None:
        """Finish what is queued."""


def make_worker(
    settings: WorkerSettings, devices: Sequence[torch.device] | None = None
) -> TaskWorker:
    """The worker of the schedule that the settings name.

    Parameters
    ----------
    settings
        What it is to do.
    devices
        Those of this node; None: its GPUs, or its processor. A sweep uses the first.

    Raises
    ------
    RequestError
        The model cannot be loaded, or does not fit the budget.
    """
    if settings.schedule == "staged":
        return GangWorker(settings, devices=devices)
    if settings.schedule == "sweep" or settings.effects is not None:
        return SweepWorker(settings)
    devices = devices or node_devices()
    if len(devices) > 1:
        # What does not fit the devices, or cannot be cut into layers, is accelerate's to place.
        with suppress(RequestError):
            layers = int(RunRecord.load(settings.root).model["layers"])
            return GangWorker(settings, [(0, layers)], devices)
    return Worker(settings)
