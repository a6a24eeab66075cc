"""Writing behind the model: encoding, flushing, publishing and committing on a thread of its own.

The model hands over blocks of finished rows and goes on; two blocks exist per worker, so that when
the disk is slower than the model, the model waits, and nothing is ever dropped or piled up. A
task's commit is the last thing its queue entry does.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from depthscope.storage.arrays import ArrayPlan
from depthscope.storage.commits import ShardRecord, publish_shard
from depthscope.storage.layout import StorePaths
from depthscope.storage.shard_writer import ShardWriter, WrittenShard
from numpy.typing import NDArray

from .clock import Clock

Result = TypeVar("Result")

#: Blocks of rows that a worker owns: one being filled, one being written.
BLOCKS = 2


@dataclass
class TaskFiles:
    """The shards that one attempt at a task writes, until they are published together.

    Attributes
    ----------
    root, folder
        The store, and the attempt's own folder for unfinished files.
    """

    root: Path
    folder: Path
    clock: Clock
    _open: dict[tuple[str, tuple[int, ...]], ShardWriter] = field(default_factory=dict)
    _done: list[tuple[ArrayPlan, tuple[int, ...], WrittenShard]] = field(default_factory=list)

    @classmethod
    def create(cls, root: Path, task: int, attempt: str, clock: Clock) -> TaskFiles:
        """Make the attempt's folder."""
        folder = StorePaths(root).attempt(task, attempt)
        folder.mkdir(parents=True, exist_ok=True)
        return cls(root, folder, clock)

    def write_rows(
        self, plan: ArrayPlan, plane: int, first: int, rows: NDArray[np.generic]
    ) -> None:
        """Append rows of one plane of a (plane, row, hidden) array.

        ``first`` is a stored row at the start of a chunk; ``rows`` ends at a chunk's end, or at the
        array's.
        """
        chunk, shard = plan.chunk[1], plan.shard[1]
        for start in range(0, len(rows), chunk):
            stored = first + start
            index = (plane, stored // shard, 0)
            writer = self._writer(plan, index)
            piece = rows[start : start + chunk]
            with self.clock.measure("encode"):
                writer.append((0, stored % shard // chunk, 0), piece[None])
            end = stored + len(piece)
            if end % shard == 0 or end == plan.shape[1]:
                self._close(plan, index)

    def write_shard(
        self, plan: ArrayPlan, index: tuple[int, ...], data: NDArray[np.generic]
    ) -> None:
        """Write a whole shard from memory, chunk by chunk along its rows (the last axis)."""
        writer = self._writer(plan, index)
        chunk = plan.chunk
        with self.clock.measure("encode"):
            for lead in range(0, data.shape[0], chunk[0]):
                for start in range(0, data.shape[-1], chunk[-1]):
                    position = (lead // chunk[0], *(0,) * (data.ndim - 2), start // chunk[-1])
                    part = data[lead : lead + chunk[0], ..., start : start + chunk[-1]]
                    writer.append(position, np.ascontiguousarray(part))
        self._close(plan, index)

    def _writer(self, plan: ArrayPlan, index: tuple[int, ...]) -> ShardWriter:
        key = (plan.path, index)
        if key not in self._open:
            name = f"{plan.path.replace('/', '.')}.{'.'.join(map(str, index))}"
            self._open[key] = ShardWriter(plan, index, self.folder / name)
        return self._open[key]

    def _close(self, plan: ArrayPlan, index: tuple[int, ...]) -> None:
        writer = self._open.pop((plan.path, index))
        with self.clock.measure("write"):
            self._done.append((plan, index, writer.close()))

    def publish(self) -> tuple[ShardRecord, ...]:
        """Give every shard its real name; the records of all, for the commit."""
        if self._open:
            raise RuntimeError(f"unfinished shards: {sorted(self._open)}")
        with self.clock.measure("write"):
            records = [
                publish_shard(self.root, plan, index, shard) for plan, index, shard in self._done
            ]
            self.folder.rmdir()
        return tuple(sorted(records))

    def abort(self) -> None:
        """Remove what the attempt wrote."""
        for writer in self._open.values():
            writer.abort()
        for _, _, shard in self._done:
            shard.temporary.unlink(missing_ok=True)
        self._open.clear()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


class WriteBehind:
    """One thread that works off what the model hands over, in order."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._queue: queue.Queue[tuple[Callable[[], Any], Future[Any]] | None] = queue.Queue(
            maxsize=BLOCKS
        )
        self._thread = threading.Thread(target=self._work, name="write-behind", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Queue a piece of work; waits while the queue is full."""
        future: Future[Result] = Future()
        with self.clock.measure("wait"):
            self._queue.put((work, future))
        return future

    def close(self) -> None:
        """Finish what is queued and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            work, future = item
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)


def plans_by_name(root: Path, paths: Sequence[str]) -> Mapping[str, ArrayPlan]:
    """Read the plans of the arrays that exist, by the last part of their path."""
    return {
        path.rsplit("/", 1)[1]: ArrayPlan.read(root, path)
        for path in paths
        if (root / path / "zarr.json").is_file()
    }
