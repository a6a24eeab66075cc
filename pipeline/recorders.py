"""What a worker takes from every batch: activations in blocks, numbers per token, lens values."""

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
from .lens import LENS_VALUES, LensMeasure
from .placement import Placement, RowCopy, StoredRange
from .statistics import layer_statistics
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
    ) -> None:
        self.stored = stored
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
        self._copy = RowCopy(self.stored.of_batch(batch), self._base)

    def take(self, array: str, index: int, hidden: torch.Tensor) -> None:
        """Copy one plane of the batch, (lines, width, d), if it is stored."""
        plane = self._plane.get((array, index))
        if plane is not None and self._copy is not None and self._block is not None:
            self._copy(hidden, self._block[plane])

    def fill_nan(self, pieces: Sequence[Piece]) -> None:
        """Mark the rows of documents that failed."""
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
        whole = self._end if self._end == self.stored.last else self._end // chunk * chunk
        count = max(0, whole - base)
        self._rest, self._block = block[:, count : self._end - base].clone(), None
        self._base = base + count
        return writer.submit(partial(self._write, files, block, base, count))

    def release(self) -> None:
        """Hand the block back when the task fails."""
        if self._block is not None:
            self._pool.give(self._block)
            self._block = None

    def _write(self, files: TaskFiles, block: torch.Tensor, base: int, count: int) -> None:
        try:
            rows = as_numpy(block[:, :count])
            for number, plane in enumerate(self._planes):
                files.write_rows(self._plans[plane.array], plane.position, base, rows[number])
        finally:
            self._pool.give(block)


class StatisticsRecorder:
    """Norms, ratios and cosines of every row of a task, float32 (11, layers, rows)."""

    def __init__(self, layers: int, stored: StoredRange) -> None:
        self.stored = stored
        self.values = np.full((11, layers, stored.last - stored.first), np.nan, np.float32)
        self._placement: Placement | None = None
        self._pending: list[torch.Tensor] = []

    def begin(self, batch: Batch) -> None:
        """Plan where a batch's numbers go."""
        self._placement = self.stored.of_batch(batch)
        self._pending = []

    def take(self, h: torch.Tensor, a: torch.Tensor, m: torch.Tensor) -> None:
        """Measure one layer of the batch; inputs (lines, width, d)."""
        width = h.shape[-1]
        self._pending.append(layer_statistics(*(x.reshape(-1, width) for x in (h, a, m))))

    def end(self) -> None:
        """Bring the batch's numbers to the host, once for all layers."""
        placement = self._placement
        if placement is None or not len(placement.source):
            return
        device = self._pending[0].device
        measured = torch.stack([part.to(device) for part in self._pending], dim=1)
        rows = measured.cpu().numpy()[:, :, placement.source]
        self.values[:, :, placement.target - self.stored.first] = rows

    def arrays(self) -> Mapping[str, NDArray[np.float32]]:
        """The task's shard of each array."""
        return {
            "norm": self.values[:5],
            "norm_ratio": self.values[5:8],
            "cosine": self.values[8:],
        }


class LensRecorder:
    """Logit-lens values of the rows chosen for them, float32 (points, rows) each."""

    def __init__(self, measure: LensMeasure, points: int, stored: StoredRange) -> None:
        self.stored, self._measure = stored, measure
        self.values = {
            name: np.full((points, stored.last - stored.first), np.nan, np.float32)
            for name in LENS_VALUES
        }
        self._placement: Placement | None = None
        self._rows: list[torch.Tensor] = []
        self._next: torch.Tensor | None = None

    def begin(self, batch: Batch) -> None:
        """Plan which rows of a batch are measured."""
        self._placement = self.stored.of_batch(batch)
        self._source = torch.from_numpy(self._placement.source)
        self._next = batch.next_ids()[self._source]
        self._rows = []

    def take(self, hidden: torch.Tensor) -> None:
        """Keep the chosen rows of one point, (lines, width, d)."""
        if len(self._source):
            flat = hidden.reshape(-1, hidden.shape[-1])
            self._rows.append(flat.index_select(0, self._source.to(flat.device)))

    def end(self) -> None:
        """Measure the batch's chosen rows at every point."""
        if not self._rows or self._placement is None or self._next is None:
            return
        device = self._rows[-1].device
        points = torch.stack([rows.to(device) for rows in self._rows])
        for name, value in self._measure.measure(points, self._next).items():
            self.values[name][:, self._placement.target - self.stored.first] = value.cpu().numpy()


def as_numpy(tensor: torch.Tensor) -> NDArray[np.generic]:
    """The tensor's memory as a NumPy array; bfloat16 through its bits."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
