"""The worker of each schedule that needs one process only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from depthscope.storage.commits import Commit
from depthscope.storage.tasks import Task

from .equipment import WorkerSettings
from .gang_worker import GangWorker
from .layered_task import Effects, Extractions
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


def make_worker(settings: WorkerSettings) -> TaskWorker:
    """The worker of the schedule that the settings name.

    Raises
    ------
    RequestError
        The model cannot be loaded, or does not fit the budget.
    """
    if settings.effects is not None:
        return SweepWorker(settings, Effects(settings.effects))
    if settings.schedule == "sweep":
        return SweepWorker(settings, Extractions())
    return GangWorker(settings) if settings.schedule == "staged" else Worker(settings)
