"""Where Dask computes: threads of this process by default, a Dask cluster when asked.

The only module that knows Dask's schedulers. Every reduction of this package is a graph whose tasks
read from the store by themselves, so a cluster needs nothing but the same file system.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dask
from dask.callbacks import Callback

#: Called with the steps done and the steps there are.
Progress = Callable[[int, int], None]


@contextmanager
def compute_on(address: str | None = None, *, workers: int | None = None) -> Iterator[None]:
    """Compute inside the block on the scheduler that is named.

    Parameters
    ----------
    address
        None or ``threads`` for the threads of this process, ``local`` for a cluster of processes
        on this machine, otherwise the address of a running Dask scheduler.
    workers
        Threads, or processes of a local cluster; None leaves it to Dask.
    """
    if address in (None, "threads"):
        with dask.config.set(scheduler="threads", num_workers=workers):
            yield
        return
    from distributed import Client, LocalCluster

    if address == "local":
        with (
            LocalCluster(n_workers=workers, dashboard_address=None) as cluster,
            Client(cluster),
        ):
            yield
        return
    with Client(address):
        yield


class TaskProgress(Callback):  # type: ignore[misc]
    """Reports the finished tasks of a computation on local threads; a cluster has its dashboard."""

    def __init__(self, report: Progress | None) -> None:
        super().__init__(start_state=self._begin, posttask=self._step)
        self._report = report
        self._done = 0
        self._total = 0

    def _begin(self, _: Any, state: Mapping[str, Any]) -> None:
        self._done = 0
        self._total = len(state["ready"]) + len(state["waiting"])

    def _step(self, *_: Any) -> None:
        self._done += 1
        if self._report is not None:
            self._report(min(self._done, self._total), self._total)
