"""How far actors are: their counters for this command's progress, and for Ray's own metrics."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.util.metrics import Counter as RayCounter

#: What an actor answers: process id, rows through the model, seconds by kind of work.
Answer = tuple[int, int, Mapping[str, float]]
#: Seconds between two questions to an actor.
_EVERY = 1.0


class WorkerMetrics:
    """Exports an actor's counters through Ray's metrics."""

    def __init__(self) -> None:
        self._rows = RayCounter("depthscope_rows", description="rows run through the model")
        self._seconds = RayCounter(
            "depthscope_seconds", description="seconds by kind of work", tag_keys=("kind",)
        )
        self._counted: dict[str, float] = {}
        self._lock = threading.Lock()

    def export(self, rows: int, seconds: Mapping[str, float]) -> Answer:
        """Add what is new to the metrics; the answer to the question how far the actor is."""
        with self._lock:
            if (new := self._new("rows", rows)) > 0:
                self._rows.inc(new)
            for kind, value in seconds.items():
                if (new := self._new(kind, value)) > 0:
                    self._seconds.inc(new, tags={"kind": kind})
        return os.getpid(), rows, seconds

    def _new(self, name: str, value: float) -> float:
        before = self._counted.get(name, 0.0)
        self._counted[name] = max(value, before)
        return value - before


class ActorProgress:
    """The sum of what actors have answered; never waits for one."""

    def __init__(self) -> None:
        self._latest: dict[tuple[int, int], tuple[int, Mapping[str, float]]] = {}
        self._asked: dict[Any, int] = {}
        self._last_asked = 0.0

    def collect(self, ask: Mapping[int, Callable[[], Any]]) -> tuple[int, Mapping[str, float]]:
        """Rows and seconds by kind, of all actors that ever answered.

        Parameters
        ----------
        ask
            Sends the question to the actors that are up, by numbers that they keep when they are
            started again.
        """
        if self._asked:
            ready, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
            for reference in ready:
                actor = self._asked.pop(reference)
                try:
                    pid, rows, seconds = ray.get(reference)
                    self._latest[actor, pid] = (rows, seconds)
                except Exception:
                    continue
        if time.monotonic() - self._last_asked > _EVERY:
            self._last_asked = time.monotonic()
            idle = set(ask) - set(self._asked.values())
            self._asked.update({ask[actor](): actor for actor in idle})
        total: Counter[str] = Counter()
        for _, seconds in self._latest.values():
            total.update(seconds)
        return sum(rows for rows, _ in self._latest.values()), total
