"""The in-process engine: one worker in this very process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from depthscope.pipeline.equipment import WorkerSettings
from depthscope.pipeline.worker import Worker
from depthscope.storage.commits import Commit
from depthscope.storage.tasks import Task

from .dispatch import IN_FLIGHT, Attempt

#: Makes the worker; tests put one of their own here.
WorkerFactory = Callable[[WorkerSettings], Worker]


class ProcessPool:
    """A single worker, whose compute and write threads live in this process."""

    def __init__(self, settings: WorkerSettings, factory: WorkerFactory = Worker) -> None:
        self._worker = factory(settings)
        self._threads = ThreadPoolExecutor(IN_FLIGHT, "task")

    def workers(self) -> Sequence[int]:
        """The one worker."""
        return [0]

    def lost(self) -> bool:
        """Never: it lives as long as this process."""
        return False

    def submit(self, worker: int, task: Task) -> Future[Commit | None]:
        """Start a task on a thread."""
        return self._threads.submit(self._worker.run, task)

    def wait(self, attempts: Sequence[Attempt], seconds: float) -> Sequence[Attempt]:
        """Wait for the first to finish."""
        futures = [attempt for attempt in attempts if isinstance(attempt, Future)]
        return list(wait(futures, timeout=seconds, return_when=FIRST_COMPLETED).done)

    def progress(self) -> tuple[int, Mapping[str, float]]:
        """The worker's own counters."""
        return self._worker.progress()

    def close(self) -> None:
        """Finish what is being written."""
        self._threads.shutdown(cancel_futures=True)
        self._worker.close()
