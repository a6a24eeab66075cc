"""The Ray engine: workers are actors.

Every actor loads the model once. It may be restarted by Ray a bounded number of times; the task it
held then goes back to the queue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import ray
from depthscope.pipeline.equipment import WorkerSettings
from depthscope.pipeline.schedules import make_worker
from depthscope.storage.commits import Commit
from depthscope.storage.errors import RequestError
from depthscope.storage.tasks import Task
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from .dispatch import Attempt, WorkerLost, in_flight
from .engines import on_devices
from .ray_cluster import (
    RESTARTS,
    actor_environment,
    await_node,
    connect,
    patience,
    reason,
    share_of_gpus,
)
from .ray_progress import ActorProgress, Answer, WorkerMetrics


class WorkerActor:
    """A worker behind Ray: the same code, with counters exported through Ray's metrics."""

    def __init__(self, settings: WorkerSettings) -> None:
        node = ray.get_runtime_context().get_node_id()
        # First, since the worker counts what is read from its beginning on.
        self._metrics = WorkerMetrics()
        self._worker = make_worker(replace(settings, node=node))

    def run(self, task: Task) -> tuple[Commit, ...]:
        """Turn a task into committed data."""
        commits = self._worker.run(task)
        self.progress()
        return commits

    def progress(self) -> Answer:
        """Process id, rows through the model, seconds by kind of work."""
        return self._metrics.export(*self._worker.progress())


@dataclass(eq=False)
class RayAttempt:
    """A task on an actor."""

    reference: Any
    worker: int
    down: Callable[[int], None]

    def result(self) -> tuple[Commit, ...]:
        """The commits, or what the worker raised, as itself.

        Raises
        ------
        WorkerLost
            The actor died.
        """
        try:
            return cast("tuple[Commit, ...]", ray.get(self.reference))
        except RayActorError as error:
            self.down(self.worker)
            raise WorkerLost(f"worker {self.worker} died: {reason(error)}") from error
        except RayTaskError as error:
            raise (error.cause or error) from None


class RayPool:
    """Actors on a local or an existing cluster.

    Parameters
    ----------
    settings
        For every worker.
    workers
        How many.
    address
        An existing cluster; None starts a local one.
    gpus
        GPUs of each worker; None for its share of what the cluster's nodes have.

    Raises
    ------
    RequestError
        The cluster cannot be reached, or a worker refuses the request.
    """

    def __init__(
        self, settings: WorkerSettings, workers: int, address: str | None, gpus: float | None
    ) -> None:
        self._own = connect(address, cpus=workers * settings.threads)
        self._actors: list[Any] = []
        gpus = share_of_gpus(workers) if gpus is None else gpus
        settings = on_devices(settings, int(gpus))
        self.in_flight = in_flight(settings)
        try:
            await_node(settings.threads, gpus, patience(address))
        except RequestError:
            self.close()
            raise
        actor = ray.remote(WorkerActor).options(
            num_cpus=settings.threads,
            num_gpus=gpus,
            max_restarts=RESTARTS,
            max_task_retries=0,
            max_concurrency=self.in_flight + 1,
            runtime_env=actor_environment(settings.threads),
        )
        self._actors += [actor.remote(settings) for _ in range(workers)]
        self._progress = ActorProgress()
        # A worker that loads, or for which there is no room yet, takes no task.
        self._starting = {w: a.progress.remote() for w, a in enumerate(self._actors)}
        self._dead: set[int] = set()
        self._await_first()

    def _await_first(self) -> None:
        """Wait until one worker has loaded the model, so that a bad request is one clear line."""
        for chance in range(RESTARTS):
            try:
                ready, _ = ray.wait(list(self._starting.values()), num_returns=1)
                ray.get(ready)
                return
            except RayActorError as error:
                cause = getattr(error, "cause", None) or error.__cause__
                # An actor that merely died is restarted; one that refuses to start never will.
                if cause is None and chance < RESTARTS - 1:
                    self._starting = {w: a.progress.remote() for w, a in enumerate(self._actors)}
                    continue
                self.close()
                if isinstance(cause, RayTaskError) and isinstance(cause.cause, RequestError):
                    raise cause.cause from None
                raise RequestError(f"the workers cannot start: {reason(error)}") from error

    def workers(self) -> Sequence[int]:
        """The workers that are up; one that starts, or died, comes when it answers."""
        for worker, reference in list(self._starting.items()):
            if ray.wait([reference], timeout=0)[0]:
                try:
                    ray.get(reference)
                except ActorUnavailableError:
                    self._starting[worker] = self._actors[worker].progress.remote()
                except RayActorError:
                    self._dead.add(worker)
                    del self._starting[worker]
                else:
                    del self._starting[worker]
        return [w for w in range(len(self._actors)) if w not in self._starting.keys() | self._dead]

    def lost(self) -> bool:
        """Whether Ray has given every actor up."""
        return len(self._dead) == len(self._actors)

    def submit(self, worker: int, task: Task) -> RayAttempt:
        """Send a task to an actor."""
        return RayAttempt(self._actors[worker].run.remote(task), worker, self._down)

    def _down(self, worker: int) -> None:
        if worker not in self._starting and worker not in self._dead:
            self._starting[worker] = self._actors[worker].progress.remote()

    def wait(self, attempts: Sequence[Attempt], seconds: float) -> Sequence[Attempt]:
        """Wait for the first to finish."""
        by_reference = {a.reference: a for a in attempts if isinstance(a, RayAttempt)}
        if not by_reference:
            return []
        ready, _ = ray.wait(list(by_reference), num_returns=1, timeout=seconds)
        more, _ = ray.wait(list(by_reference), num_returns=len(by_reference), timeout=0)
        return [by_reference[reference] for reference in {*ready, *more}]

    def progress(self) -> tuple[int, Mapping[str, float]]:
        """Sum of the workers' counters, as far as they have answered; never waits for one."""
        ask = {number: actor.progress.remote for number, actor in enumerate(self._actors)}
        return self._progress.collect(ask)

    def close(self) -> None:
        """End the actors, and the cluster if it is our own."""
        for actor in self._actors:
            ray.kill(actor)
        if self._own:
            ray.shutdown()
