"""A gang of stages, which together are one worker: each task goes through all of them.

Micro-batches of one task after the other are sent down the line, so many at a time that every
device has one to compute and one waiting; the end of one task and the beginning of the next are in
the line together. A task is done when all stages have committed their points of it. When anything
goes wrong with a task, all stages give it up before the next one follows. The same for stages in
this process and on other nodes: these differ in their `StageHandle` only.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from depthscope.storage.commits import Commit
from depthscope.storage.tasks import Task

Result = TypeVar("Result")

#: Micro-batches in flight for each device: one computes, one waits for it.
PER_DEVICE = 2


class StageHandle(Protocol):
    """A stage, wherever it is; the methods of `Stage`, none of which blocks."""

    def begin(self, task: Task, key: str) -> Future[int]:
        """Open a task; the number of its micro-batches."""

    def forward(self, sequence: int, key: str, number: int, carried: Any) -> Any:
        """Send a micro-batch with what the stage before returned for it (None for the first)."""

    def result(self, sent: Any) -> Future[None]:
        """When a micro-batch has left the last stage."""

    def finish(self, key: str) -> Future[tuple[Commit, ...]]:
        """Commit the stage's points of a task."""

    def abort(self, key: str, sequences: tuple[int, int]) -> Future[None]:
        """Give a task up."""


class _Flight:
    """The micro-batches of one task that are in the line."""

    def __init__(self, slots: threading.BoundedSemaphore) -> None:
        self._slots, self._count = slots, 0
        self._changed = threading.Condition()
        self.error: BaseException | None = None

    def add(self, sent: Future[None]) -> None:
        """Watch one, which has taken a slot."""
        with self._changed:
            self._count += 1
        sent.add_done_callback(self._landed)

    def _landed(self, sent: Future[None]) -> None:
        self._slots.release()
        with self._changed:
            self.error = self.error or sent.exception()
            self._count -= 1
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait for all; raises what went wrong first."""
        with self._changed:
            self._changed.wait_for(lambda: self._count == 0)
        if self.error is not None:
            raise self.error


class Gang:
    """The stages of one model, in order.

    Parameters
    ----------
    stages
        Their handles.
    in_flight
        Micro-batches in the line at most, over all tasks.
    """

    def __init__(self, stages: Sequence[StageHandle], in_flight: int) -> None:
        self.stages = list(stages)
        self._slots = threading.BoundedSemaphore(in_flight)
        self._turn = threading.Lock()
        self._sequence = 0

    def run(self, task: Task) -> tuple[Commit, ...]:
        """Take a task through all stages; blocks until all have committed.

        Several threads may each bring a task; they are sent one after the other.

        Returns
        -------
        tuple of Commit
            Those of all stages; none where another attempt was first.
        """
        key = f"{task.index}-{secrets.token_hex(4)}"
        flight = _Flight(self._slots)
        with self._turn:
            first = self._sequence
            try:
                self._send(task, key, flight)
            except BaseException:
                # Before the next task is sent: see `Stage.abort`.
                self._abort(key, first)
                raise
            last = self._sequence
        try:
            flight.wait()
            commits = self._all(lambda stage: stage.finish(key))
        except BaseException:
            self._abort(key, first, last)
            raise
        return tuple(commit for made in commits for commit in made)

    def _send(self, task: Task, key: str, flight: _Flight) -> None:
        (count, *_) = self._all(lambda stage: stage.begin(task, key))
        for number in range(count):
            self._slots.acquire()
            if flight.error is not None:
                self._slots.release()
                raise flight.error
            try:
                sent: Any = None
                for stage in self.stages:
                    sent = stage.forward(self._sequence, key, number, sent)
                landing = self.stages[-1].result(sent)
            except BaseException:
                self._slots.release()
                raise
            finally:
                self._sequence += 1
            flight.add(landing)

    def _abort(self, key: str, first: int, last: int | None = None) -> None:
        sequences = (first, self._sequence if last is None else last)
        for future in [stage.abort(key, sequences) for stage in self.stages]:
            # A stage that is gone has given everything up.
            with suppress(Exception):
                future.result()

    def _all(self, call: Callable[[StageHandle], Future[Result]]) -> list[Result]:
        """Call all stages at once; the results of all, or the first error once all have ended."""
        futures = [call(stage) for stage in self.stages]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise errors[0]
        return [future.result() for future in futures]
