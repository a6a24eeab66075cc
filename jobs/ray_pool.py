"""The Ray engine: workers are actors; the only module that knows Ray.

Every actor loads the model once. It may be restarted by Ray a bounded number of times; the task it
held then goes back to the queue. A cluster of the command's own listens on loopback only, uses a
bounded object store, and ends with the command.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import ray
from depthscope.pipeline.equipment import WorkerSettings
from depthscope.pipeline.schedules import make_worker
from depthscope.storage.commits import Commit
from depthscope.storage.errors import RequestError
from depthscope.storage.tasks import Task
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.util.metrics import Counter as RayCounter

from .dispatch import Attempt, WorkerLost, in_flight
from .environment import SETTINGS

#: Bytes of the object store of a local cluster: results are small, so the least that Ray allows.
OBJECT_STORE = 100 << 20
#: How often Ray restarts an actor that died.
RESTARTS = 8


class WorkerActor:
    """A worker behind Ray: the same code, with counters exported through Ray's metrics."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._worker = make_worker(settings)
        self._rows = RayCounter("depthscope_rows", description="rows run through the model")
        self._seconds = RayCounter(
            "depthscope_seconds", description="seconds by kind of work", tag_keys=("kind",)
        )
        self._counted: Counter[str] = Counter()

    def run(self, task: Task) -> tuple[Commit, ...]:
        """Turn a task into committed data."""
        commits = self._worker.run(task)
        self._export()
        return commits

    def progress(self) -> tuple[int, int, Mapping[str, float]]:
        """Process id, rows through the model, seconds by kind of work."""
        rows, seconds = self._worker.progress()
        return os.getpid(), rows, seconds

    def _export(self) -> None:
        rows, seconds = self._worker.progress()
        if (new := rows - self._counted["rows"]) > 0:
            self._rows.inc(new)
            self._counted["rows"] = rows
        for kind, value in seconds.items():
            if (new_seconds := value - self._counted[kind]) > 0:
                self._seconds.inc(new_seconds, tags={"kind": kind})
                self._counted[kind] = value  # type: ignore[assignment]


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
            raise WorkerLost(f"worker {self.worker} died: {_reason(error)}") from error
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
        GPUs of each worker.

    Raises
    ------
    RequestError
        The cluster cannot be reached, or a worker refuses the request.
    """

    def __init__(
        self, settings: WorkerSettings, workers: int, address: str | None, gpus: float
    ) -> None:
        self.in_flight = in_flight(settings)
        self._own = not ray.is_initialized()
        if self._own:
            connect(address, cpus=workers * settings.threads)
        environment = SETTINGS | {"OMP_NUM_THREADS": str(settings.threads)}
        actor = ray.remote(WorkerActor).options(
            num_cpus=settings.threads,
            num_gpus=gpus,
            max_restarts=RESTARTS,
            max_task_retries=0,
            max_concurrency=self.in_flight + 1,
            runtime_env={"env_vars": environment},
        )
        self._actors = [actor.remote(settings) for _ in range(workers)]
        self._progress: dict[int, tuple[int, int, Mapping[str, float]]] = {}
        self._asked: dict[Any, int] = {}
        self._restarting: dict[int, Any] = {}
        self._dead: set[int] = set()
        self._last_asked = 0.0
        self._await_first()

    def _await_first(self) -> None:
        """Wait until one worker has loaded the model, so that a bad request is one clear line."""
        for chance in range(RESTARTS):
            try:
                ready, _ = ray.wait([a.progress.remote() for a in self._actors], num_returns=1)
                ray.get(ready)
                return
            except RayActorError as error:
                cause = getattr(error, "cause", None) or error.__cause__
                # An actor that merely died is restarted; one that refuses to start never will.
                if cause is None and chance < RESTARTS - 1:
                    continue
                self.close()
                if isinstance(cause, RayTaskError) and isinstance(cause.cause, RequestError):
                    raise cause.cause from None
                raise RequestError(f"the workers cannot start: {_reason(error)}") from error

    def workers(self) -> Sequence[int]:
        """The workers that are up; one that died comes back when its restart answers."""
        for worker, reference in list(self._restarting.items()):
            if ray.wait([reference], timeout=0)[0]:
                try:
                    ray.get(reference)
                except ActorUnavailableError:
                    self._restarting[worker] = self._actors[worker].progress.remote()
                except RayActorError:
                    self._dead.add(worker)
                    del self._restarting[worker]
                else:
                    del self._restarting[worker]
        return [
            w for w in range(len(self._actors)) if w not in self._restarting.keys() | self._dead
        ]

    def lost(self) -> bool:
        """Whether Ray has given every actor up."""
        return len(self._dead) == len(self._actors)

    def submit(self, worker: int, task: Task) -> RayAttempt:
        """Send a task to an actor."""
        return RayAttempt(self._actors[worker].run.remote(task), worker, self._down)

    def _down(self, worker: int) -> None:
        if worker not in self._restarting and worker not in self._dead:
            self._restarting[worker] = self._actors[worker].progress.remote()

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
        if self._asked:
            ready, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
            for reference in ready:
                worker = self._asked.pop(reference)
                try:
                    pid, rows, seconds = ray.get(reference)
                    self._progress[pid] = (worker, rows, seconds)
                except Exception:
                    continue
        idle = set(range(len(self._actors))) - set(self._asked.values())
        if time.monotonic() - self._last_asked > 1:
            self._last_asked = time.monotonic()
            self._asked.update({self._actors[w].progress.remote(): w for w in idle})
        total: Counter[str] = Counter()
        for _, _, seconds in self._progress.values():
            total.update(seconds)
        return sum(rows for _, rows, _ in self._progress.values()), total

    def close(self) -> None:
        """End the actors, and the cluster if it is our own."""
        for actor in self._actors:
            ray.kill(actor)
        if self._own:
            ray.shutdown()


def connect(address: str | None, cpus: int) -> None:
    """Join an existing cluster, or start a local one that leaves the machine usable.

    Raises
    ------
    RequestError
        Nothing answers at the address.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:
        ray.init(
            address="local",
            num_cpus=max(1, cpus),
            object_store_memory=OBJECT_STORE,
            include_dashboard=False,
            configure_logging=True,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
        return
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise RequestError(
            f"--address {address}: no Ray cluster answers there ({str(error).splitlines()[0]})"
        ) from error


def cluster_nodes() -> int:
    """Nodes of the connected cluster that are alive."""
    return sum(bool(node["Alive"]) for node in ray.nodes())


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
