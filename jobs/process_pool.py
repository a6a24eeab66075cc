"""The in-process engine: one worker in this very process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from depthscope.pipeline.equipment import WorkerSettings
from depthscope.pipeline.schedules import TaskWorker, make_worker
from depthscope.storage.commits import Commit
from depthscope.storage.tasks import Task

from .dispatch import Attempt, in_flight

#: Makes the worker; tests put one of their own here.
WorkerFactory = Callable[[WorkerSettings], TaskWorker]


class ProcessPool:
    """A single worker, whose compute and write threads live in this process."""

    def __init__(self, settings: WorkerSettings, factory: WorkerFactory = make_worker) -> None:
        self.in_flight = in_flight(settings)
        self._worker = factory(settings)
        self._threads = ThreadPoolExecutor(self.in_flight, "task")

    def workers(self) -> Sequence[int]:
        """The one worker."""
        return [0]

    def lost(self) -> bool:
        """Never: it lives as long as this process."""
        return False

    def submit(self, worker: int, task: Task) -> Future[tuple[Commit, ...]]:
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
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._worker.close()
        self._threads.shutdown()
