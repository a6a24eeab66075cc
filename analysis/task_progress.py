"""How far a computation is, whether threads of this process or the workers of a cluster do it.

On threads Dask's callbacks count tasks; on a cluster its scheduler does, and is asked as
``distributed.progress`` asks it. Passes over blocks are single long tasks: workers log the blocks
that they have done as events, to which the client subscribes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

import dask
from dask.callbacks import Callback

from .client import Progress, client_now

#: Called with the blocks done.
Seen = Callable[[int], None]


@contextmanager
def task_progress(report: Progress | None) -> Iterator[None]:
    """Report the finished tasks of everything that Dask computes inside the block."""
    client = client_now()
    if report is None:
        yield
    elif client is None:
        with _LocalTasks(report):
            yield
    else:
        with dask.config.set(scheduler=_Followed(client, report).get):
            yield


class _LocalTasks(Callback):  # type: ignore[misc]
    def __init__(self, report: Progress) -> None:
        super().__init__(start_state=self._begin, posttask=self._step)
        self._report = report
        self._done = 0
        self._total = 0

    def _begin(self, _: Any, state: Mapping[str, Any]) -> None:
        self._done = 0
        self._total = len(state["ready"]) + len(state["waiting"])

    def _step(self, *_: Any) -> None:
        self._done += 1
        self._report(min(self._done, self._total), self._total)


@dataclass(frozen=True, eq=False)
class _Followed:
    """Computes on a cluster as its client does, and watches."""

    client: Any
    report: Progress

    def get(self, graph: Any, keys: Any, **options: Any) -> Any:
        """Dask's interface of a scheduler."""
        from distributed import futures_of
        from distributed.diagnostics.progressbar import ProgressBar

        report = self.report

        class Watch(ProgressBar):  # type: ignore[misc]
            def _draw_bar(self, remaining: int, all: int, **_: Any) -> None:
                report(all - remaining, all)

        found = self.client.get(graph, keys, sync=False, **options)
        if futures := futures_of(found):
            self.client.sync(Watch(futures).listen)
        return self.client.gather(found)


@dataclass(frozen=True)
class _Logged:
    """Called by a worker with the blocks of its part that are done."""

    topic: str
    part: int

    def __call__(self, done: int) -> None:
        from distributed import get_worker

        get_worker().log_event(self.topic, [self.part, done])


@contextmanager
def blocks_seen(seen: Seen | None, parts: int) -> Iterator[list[Seen | None]]:
    """What each of some parts of a pass is given to report to; inside, their sum is reported.

    Parameters
    ----------
    seen
        Called with the blocks done in all parts together; None for nobody.
    parts
        How many there are, each of them a task of the connected cluster.
    """
    if seen is None:
        yield [None] * parts
        return
    client, topic = client_now(), f"depthscope-blocks-{token_hex(6)}"
    done = [0] * parts

    def hear(event: tuple[float, list[int]]) -> None:
        part, blocks = event[1]
        # Events may come after the end.
        if done:
            # A part that is done again elsewhere begins anew.
            done[part] = max(done[part], blocks)
            seen(sum(done))

    client.subscribe_topic(topic, hear)
    try:
        yield [_Logged(topic, part) for part in range(parts)]
    finally:
        done.clear()
        client.unsubscribe_topic(topic)
