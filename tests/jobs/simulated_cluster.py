"""A cluster of any size behind one real driver: workers whose model is fake, commits that are real.

Every worker finishes a task after the time that its rate says. What it hands over then is made by
the real worker's code around a model that computes nothing: real shards, real commits, on the disk.
A few processes do that for all workers, so that the driver's own process runs the driver alone.
"""

from __future__ import annotations

import contextlib
import heapq
import multiprocessing
import queue
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from depthscope.jobs.dispatch import Attempt, in_flight
from depthscope.pipeline.equipment import WorkerSettings
from depthscope.storage.commits import Commit
from depthscope.storage.tasks import Task

_worker: Any = None


class FakeBody:
    """Hands out a stream of the token ids themselves, at once."""

    device = torch.device("cpu")

    def __init__(self, layers: int, hidden: int) -> None:
        self.layers, self.hidden = layers, hidden

    def check_identity(self, *_: Any, **__: Any) -> None:
        """Nothing to check."""

    def run(self, ids: Any, on_point: Any = None, on_layer: Any = None, **_: Any) -> None:
        """Every point is the row's token id in every channel."""
        stream = ids[..., None].expand(*ids.shape, self.hidden).to(torch.float32).contiguous()
        for point in range(self.layers + 1):
            if on_layer is not None and point:
                on_layer(point - 1, stream, stream, stream)
            if on_point is not None:
                on_point(point, stream)


def _begin(settings: WorkerSettings) -> None:
    global _worker
    import depthscope.pipeline.worker as module
    from depthscope.storage.run_record import RunRecord

    model = RunRecord.load(settings.root).model
    fake = FakeBody(int(model["layers"]), int(model["hidden"]))
    module.load_body = lambda *_, **__: fake  # type: ignore[assignment]
    _worker = module.Worker(settings)


def _run(task: Task) -> tuple[Commit, ...]:
    found: tuple[Commit, ...] = _worker.run(task)
    return found


@dataclass(eq=False)
class SimulatedAttempt:
    """A task on a simulated worker."""

    task: Task
    due: float
    made: Future[tuple[Commit, ...]] | None = None

    def result(self) -> tuple[Commit, ...]:
        """The real commits."""
        assert self.made is not None
        return self.made.result()


@dataclass
class SimulatedPool:
    """Workers at a chosen rate.

    Parameters
    ----------
    workers_wanted
        How many.
    rows_per_second
        Of each worker.
    processes
        How many processes make the data of all of them.
    """

    settings: WorkerSettings
    workers_wanted: int
    rows_per_second: float
    processes: int = 1
    in_flight: int = field(init=False)

    def __post_init__(self) -> None:
        self.in_flight = in_flight(self.settings)
        self._numbers = range(self.workers_wanted)
        self._free = dict.fromkeys(self._numbers, 0.0)
        self._due: list[tuple[float, int, SimulatedAttempt]] = []
        self._making: dict[Future[Any], SimulatedAttempt] = {}
        self._made: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._rows = self._count = 0
        self._makers = ProcessPoolExecutor(
            self.processes, multiprocessing.get_context("spawn"), _begin, (self.settings,)
        )

    def workers(self) -> Sequence[int]:
        """All of them."""
        return self._numbers

    def lost(self) -> bool:
        """Never."""
        return False

    def submit(self, worker: int, task: Task) -> Attempt:
        """The worker takes the task on after those that it has."""
        seconds = (task.rows[1] - task.rows[0]) / self.rows_per_second
        self._free[worker] = max(self._free[worker], time.monotonic()) + seconds
        attempt = SimulatedAttempt(task, self._free[worker])
        self._count += 1
        heapq.heappush(self._due, (attempt.due, self._count, attempt))
        return attempt

    def wait(self, attempts: Sequence[Attempt], seconds: float) -> Sequence[Attempt]:
        """Those whose time has come and whose data are on the disk."""
        until = time.monotonic() + seconds
        found: list[SimulatedAttempt] = []
        while not found:
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                attempt = heapq.heappop(self._due)[2]
                making = self._makers.submit(_run, attempt.task)
                self._making[making] = attempt
                making.add_done_callback(self._made.put)
            until_due = self._due[0][0] if self._due else until
            with contextlib.suppress(queue.Empty):
                pause = max(0.001, min(until, until_due) - now)
                found.append(self._finished(self._made.get(timeout=pause)))
            if now >= until:
                break
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._finished(self._made.get_nowait()))
        self._rows += sum(a.task.rows[1] - a.task.rows[0] for a in found)
        return found

    def _finished(self, made: Future[Any]) -> SimulatedAttempt:
        attempt = self._making.pop(made)
        attempt.made = made
        return attempt

    def progress(self) -> tuple[int, Mapping[str, float]]:
        """Rows so far."""
        return self._rows, {"compute": float(self._rows) / self.rows_per_second}

    def close(self) -> None:
        """End the processes."""
        self._makers.shutdown()
