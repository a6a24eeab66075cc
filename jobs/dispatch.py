"""Handing tasks to workers: a dynamic queue with retries, back-up attempts and a clean stop.

Every engine offers a `Pool`; what happens to tasks is decided here alone. Each worker holds a few
tasks: one computes, one is being written; a sweep takes many through each layer together. A task
that fails is tried again a bounded number of times. When the queue is empty and a task takes far
longer than its like, an idle worker tries it too: the commit decides who was first, so a worker
that hangs holds nothing up and harms nothing. Time per task does not depend on how many there are.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from depthscope.pipeline.equipment import WorkerSettings
from depthscope.storage.commits import Commit
from depthscope.storage.errors import RequestError, Stopped, WorkFailed
from depthscope.storage.tasks import Task

#: Tasks that a worker with one device holds: one computes, one is being written. Each device more
#: may have the end of another task, so that none waits between two tasks.
IN_FLIGHT = 2
#: Seconds between looks at progress and signals.
TICK = 0.5
#: Seconds that running tasks have to commit in when the run is asked to stop, unless this variable
#: of the environment says otherwise: whoever sends the signal knows how much time there is.
STOPPING, STOP_SECONDS = 20.0, "DEPTHSCOPE_STOP_SECONDS"
#: A task is a straggler beyond this many times the usual time, and this many seconds.
STRAGGLER_TIMES, STRAGGLER_SECONDS = 4.0, 20.0


def in_flight(settings: WorkerSettings) -> int:
    """Tasks that a worker of this schedule holds at a time."""
    if settings.schedule == "sweep":
        return settings.tasks_at_once
    return IN_FLIGHT + settings.stages * settings.devices - 1


class WorkerLost(Exception):
    """The worker died; its task was not its fault alone."""


class Attempt(Protocol):
    """A task that a worker has been given."""

    def result(self) -> tuple[Commit, ...]:
        """Its commits, none when other attempts were first; raises what the worker raised."""


class Pool(Protocol):
    """Workers of one engine.

    Attributes
    ----------
    in_flight
        Tasks that one worker holds at a time.
    """

    in_flight: int

    def workers(self) -> Sequence[int]:
        """Numbers of the workers that can take a task just now."""

    def lost(self) -> bool:
        """Whether no worker is left, nor will one come back."""

    def submit(self, worker: int, task: Task) -> Attempt:
        """Give a task to a worker."""

    def wait(self, attempts: Sequence[Attempt], seconds: float) -> Sequence[Attempt]:
        """Those that have finished, waiting at most so long for the first."""

    def progress(self) -> tuple[int, Mapping[str, float]]:
        """Rows through the models so far, and seconds by kind of work."""

    def close(self) -> None:
        """End the workers."""


@dataclass
class _Running:
    task: Task
    worker: int
    started: float


@dataclass
class Outcome:
    """What became of the tasks.

    Attributes
    ----------
    committed
        How many this run committed.
    failed
        Error of each task that failed for good.
    """

    committed: int = 0
    failed: dict[int, str] = field(default_factory=dict)

    def require_all(self, tasks: int) -> None:
        """Refuse an outcome in which any of so many tasks has failed.

        Raises
        ------
        WorkFailed
            Some have; names the errors, each once.
        """
        if self.failed:
            errors = list(dict.fromkeys(self.failed.values()))
            raise WorkFailed(
                f"{len(self.failed)} of {tasks} tasks failed, the others are committed: "
                + " | ".join(errors[:5])
            )


class Dispatcher:
    """Runs tasks on a pool until all are committed, failed or stopped."""

    def __init__(
        self,
        pool: Pool,
        tasks: Iterable[Task],
        *,
        retries: int,
        on_commit: Callable[[Commit], None],
        on_tick: Callable[[int, Mapping[str, float]], None],
        on_warning: Callable[[str], None],
        on_failure: Callable[[Task, int, str], None],
        stop: Callable[[], str | None],
    ) -> None:
        self.pool, self.retries, self.stop = pool, retries, stop
        self.on_commit, self.on_tick = on_commit, on_tick
        self.on_warning, self.on_failure = on_warning, on_failure
        self.queue = deque((task, 0) for task in tasks)
        self.running: dict[Attempt, _Running] = {}
        self.tries: dict[int, int] = {}
        self.done: set[int] = set()
        self.durations: deque[float] = deque(maxlen=101)
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Work the queue off.

        Raises
        ------
        Stopped
            A signal ended the run; running tasks had time to commit.
        WorkFailed
            No worker is left.
        """
        while self._open():
            if reason := self.stop():
                self._drain()
                raise Stopped(reason)
            self._fill()
            self._collect(TICK)
        return self.outcome

    def _open(self) -> bool:
        return bool(self.queue) or any(
            item.task.index not in self.done and item.task.index not in self.outcome.failed
            for item in self.running.values()
        )

    def _fill(self) -> None:
        load = dict.fromkeys(self.pool.workers(), 0)
        if not load and self.pool.lost():
            raise WorkFailed("no worker is left; the errors above say why")
        for item in self.running.values():
            if item.worker in load:
                load[item.worker] += 1
        # Breadth first: a second task only where every worker has one.
        for depth in range(self.pool.in_flight):
            for worker, held in load.items():
                if held == depth and self.queue:
                    task, _ = self.queue.popleft()
                    self._give(worker, task)
                    load[worker] += 1
        if not self.queue:
            self._back_up([worker for worker, held in load.items() if held == 0])

    def _give(self, worker: int, task: Task) -> None:
        self.running[self.pool.submit(worker, task)] = _Running(task, worker, time.monotonic())

    def _back_up(self, idle: list[int]) -> None:
        if not idle or not self.durations:
            return
        limit = max(STRAGGLER_SECONDS, STRAGGLER_TIMES * statistics.median(self.durations))
        now = time.monotonic()
        attempts = Counter(item.task.index for item in self.running.values())
        slow = [
            item
            for item in self.running.values()
            if now - item.started > limit
            and attempts[item.task.index] == 1
            and self._wanted(item.task)
        ]
        slow.sort(key=lambda item: item.started)
        for item in slow[: len(idle)]:
            self.on_warning(f"{item.task.name} is slow: another worker tries it, too")
            self._give(idle.pop(), item.task)

    def _wanted(self, task: Task) -> bool:
        return task.index not in self.done and task.index not in self.outcome.failed

    def _collect(self, seconds: float) -> None:
        if not self.running:
            # No worker is up. Pools answer at once where nothing runs, and asking them again and
            # again would take the processor from the workers that start.
            time.sleep(seconds)
        for attempt in self.pool.wait(list(self.running), seconds):
            item = self.running.pop(attempt)
            try:
                commits = attempt.result()
            except RequestError:
                raise
            except Exception as error:
                self._failed(item, error)
            else:
                self.durations.append(time.monotonic() - item.started)
                if commits and self._wanted(item.task):
                    self.outcome.committed += 1
                    for commit in commits:
                        self.on_commit(commit)
                self.done.add(item.task.index)
        self.on_tick(*self.pool.progress())

    def _failed(self, item: _Running, error: Exception) -> None:
        index = item.task.index
        if not self._wanted(item.task):
            return
        self.tries[index] = self.tries.get(index, 0) + 1
        text = str(error).strip() or type(error).__name__
        self.on_failure(item.task, self.tries[index], text)
        if self.tries[index] <= self.retries:
            self.on_warning(
                f"{item.task.name} failed, try {self.tries[index] + 1} follows: {first_line(text)}"
            )
            self.queue.append((item.task, self.tries[index]))
        else:
            self.outcome.failed[index] = f"{item.task.name}: {text}"

    def _drain(self) -> None:
        deadline = time.monotonic() + float(os.environ.get(STOP_SECONDS, STOPPING))
        self.queue.clear()
        while self._open() and time.monotonic() < deadline:
            self._collect(TICK)


def first_line(text: str) -> str:
    """The first line that says something."""
    return next((line for line in text.splitlines() if line.strip()), "")
