"""What a worker stores of every batch: points, and what sublayers add, in blocks of rows."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple

import ml_dtypes
import numpy as np
import torch
from depthscope.storage.arrays import ArrayPlan
from numpy.typing import NDArray

from .batches import Batch, Piece
from .clock import Clock
from .placement import RowCopy, StoredRange
from .staging import HostStaging
from .write_behind import BLOCKS, TaskFiles, WriteBehind

_TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class BlockPool:
    """The worker's two blocks of rows, reused for every window; taking one waits for it."""

    def __init__(self, clock: Clock) -> None:
        self._free: queue.Queue[torch.Tensor] = queue.Queue()
        self._clock = clock
        for _ in range(BLOCKS):
            self._free.put(torch.empty(0))

    def take(self, planes: int, rows: int, hidden: int, dtype: torch.dtype) -> torch.Tensor:
        """A block of at least that many rows; its content is undefined."""
        with self._clock.measure("wait"):
            block = self._free.get()
        if block.ndim != 3 or block.shape[1] < rows or block.shape[0] != planes:
            block = torch.empty(
                planes, rows, hidden, dtype=dtype, pin_memory=torch.cuda.is_available()
            )
        return block

    def give(self, block: torch.Tensor) -> None:
        """Hand a block back."""
        self._free.put(block)


class Plane(NamedTuple):
    """One point, or what one sublayer adds: its array, its place in the model and in the array."""

    array: str
    place: int
    position: int


class ActivationRecorder:
    """Stores points, and what sublayers add, of one task.

    Rows collect in a block until the window ends; whole chunks then go to the writer, and the rest
    (less than one chunk) opens the next block.
    """

    def __init__(
        self,
        plans: Mapping[str, ArrayPlan],
        planes: Sequence[Plane],
        stored: StoredRange,
        pool: BlockPool,
        staging: HostStaging | None = None,
    ) -> None:
        self.stored, self._staging = stored, staging
        self._plans, self._planes, self._pool = plans, planes, pool
        self._plane = {(p.array, p.place): number for number, p in enumerate(planes)}
        self._plan = next(iter(plans.values()))
        self._base = stored.first
        self._block: torch.Tensor | None = None
        self._rest: torch.Tensor | None = None
        self._copy: RowCopy | None = None

    @property
    def wants_sublayers(self) -> bool:
        """Whether what attention and MLP add is stored."""
        return len(self._plans) > 1 or "residual" not in self._plans

    def open_window(self, window: Sequence[Piece]) -> None:
        """Make room for every row that the window's documents store."""
        end = max(
            (int(t[-1]) + 1 for p in window if len(t := self.stored.of_piece(p)[1])), default=0
        )
        rows = max(end - self._base, 0)
        self._block = self._pool.take(
            len(self._planes), rows, self._plan.shape[-1], _TORCH[self._plan.dtype]
        )
        if self._rest is not None:
            self._block[:, : self._rest.shape[1]] = self._rest
        self._end = max(end, self._base)

    def begin(self, batch: Batch) -> None:
        """Plan the copies of a batch."""
        placement = self.stored.of_batch(batch)
        if self._staging is None:
            self._copy = RowCopy(placement, self._base)
        else:
            hidden, dtype = self._plan.shape[-1], _TORCH[self._plan.dtype]
            self._staging.begin(placement, len(self._planes), hidden, dtype)

    def take(self, array: str, index: int, hidden: torch.Tensor) -> None:
        """Copy one plane of the batch, (lines, width, d), if it is stored."""
        plane = self._plane.get((array, index))
        if plane is None or self._block is None:
            return
        if self._staging is not None:
            self._staging.take(plane, hidden)
        elif self._copy is not None:
            self._copy(hidden, self._block[plane])

    def end(self) -> None:
        """The batch has been handed to the device: order the rows of the one before it."""
        if self._staging is not None and self._block is not None:
            self._staging.end()
            self._staging.settle(self._block, self._base)

    def fill_nan(self, pieces: Sequence[Piece]) -> None:
        """Mark the rows of documents that failed, in a batch that was not finished."""
        if self._staging is not None:
            self._staging.drop()
        for piece in pieces:
            target = self.stored.of_piece(piece)[1]
            if len(target) and self._block is not None:
                self._block[:, int(target[0]) - self._base : int(target[-1]) + 1 - self._base] = (
                    float("nan")
                )

    def close_window(self, files: TaskFiles, writer: WriteBehind) -> Future[object]:
        """Hand the whole chunks to the writer and keep the rest."""
        block, base, chunk = self._block, self._base, self._plan.chunk[1]
        if block is None:
            raise RuntimeError("no window is open")
        if self._staging is not None:
            self._staging.settle(block, base, last=True)
        whole = self._end if self._end == self.stored.last else self._end // chunk * chunk
        count = max(0, whole - base)
        self._rest, self._block = block[:, count : self._end - base].clone(), None
        self._base = base + count
        return writer.submit(partial(self._write, files, block, base, count))

    def release(self) -> None:
        """Hand the block back when the task fails."""
        if self._block is None:
            # Nothing of this task is on its way, though rows of another may be.
            return
        if self._staging is not None:
            self._staging.clear()
        self._pool.give(self._block)
        self._block = None

    def _write(self, files: TaskFiles, block: torch.Tensor, base: int, count: int) -> None:
        try:
            rows = as_numpy(block[:, :count])
            for number, plane in enumerate(self._planes):
                files.write_rows(self._plans[plane.array], plane.position, base, rows[number])
        finally:
            self._pool.give(block)


def as_numpy(tensor: torch.Tensor) -> NDArray[np.generic]:
    """The tensor's memory as a NumPy array; bfloat16 through its bits."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
