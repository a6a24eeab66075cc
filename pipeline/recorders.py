"""What a worker measures of every batch: numbers per token and layer, and rows for the lens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

from .batches import Batch
from .lens import LENS_VALUES, LensMeasure
from .placement import Placement, StoredRange
from .statistics import N_STATISTICS, Scratch, layer_statistics

Numbers = NDArray[np.float32]


class StatisticsRecorder:
    """Norms, ratios and cosines of every row of a task, float32 (11, layers, rows).

    Layers may come in one pass over a batch, or in several.
    """

    def __init__(self, layers: int, stored: StoredRange) -> None:
        self.stored = stored
        self.values = np.full((N_STATISTICS, layers, stored.last - stored.first), np.nan, "f4")
        self._placement: Placement | None = None
        self._pending: list[tuple[int, torch.Tensor]] = []
        self._scratch = Scratch()

    def begin(self, batch: Batch) -> None:
        """Plan where a batch's numbers go."""
        self._placement = self.stored.of_batch(batch)
        self._pending = []

    def take(self, layer: int, h: torch.Tensor, a: torch.Tensor, m: torch.Tensor) -> None:
        """Measure one layer of the batch; inputs (lines, width, d)."""
        width = h.shape[-1]
        h, a, m = (x.reshape(-1, width) for x in (h, a, m))
        self._pending.append((layer, layer_statistics(h, a, m, self._scratch)))

    def end(self) -> None:
        """Bring the batch's numbers to the host, once for all layers of the pass."""
        placement = self._placement
        if placement is None or not len(placement.source) or not self._pending:
            return
        first, device = self._pending[0][0], self._pending[0][1].device
        measured = torch.stack([part.to(device) for _, part in self._pending], dim=1)
        rows = measured.cpu().numpy()[:, :, placement.source]
        layers = slice(first, first + len(self._pending))
        self.values[:, layers, placement.target - self.stored.first] = rows

    def carry(self, layers: int) -> Numbers:
        """The batch's numbers of the layers before ``layers``, float32 (11, layers, n)."""
        if self._placement is None:
            raise RuntimeError("no batch has begun")
        return self.values[:, :layers, self._placement.target - self.stored.first]

    def put(self, carried: Numbers) -> None:
        """Take the batch's numbers of earlier layers from whoever ran these."""
        if self._placement is not None and len(self._placement.target):
            target = self._placement.target - self.stored.first
            self.values[:, : carried.shape[1], target] = carried

    def arrays(self) -> Mapping[str, Numbers]:
        """The task's shard of each array."""
        return {
            "norm": self.values[:5],
            "norm_ratio": self.values[5:8],
            "cosine": self.values[8:],
        }


class LensRecorder:
    """Logit-lens values of the rows chosen for them, float32 (points, rows) each.

    The values of any point need the last one, so a batch's chosen rows wait until all are there.
    """

    def __init__(self, points: int, stored: StoredRange) -> None:
        self.stored, self._points = stored, points
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
        """Keep the chosen rows of the next point, (lines, width, d)."""
        if len(self._source):
            flat = hidden.reshape(-1, hidden.shape[-1])
            self._rows.append(flat.index_select(0, self._source.to(flat.device)))

    def carry(self) -> torch.Tensor | None:
        """The batch's chosen rows at the points taken so far, (points, n, d); None where none."""
        if not self._rows:
            return None
        device = self._rows[-1].device
        return torch.stack([rows.to(device) for rows in self._rows])

    def put(self, carried: torch.Tensor | None) -> None:
        """Take the batch's chosen rows at earlier points from whoever ran these."""
        if carried is not None:
            self._rows[:0] = list(carried)

    def measure(self, lens: LensMeasure) -> None:
        """Measure the batch's chosen rows at every point.

        Raises
        ------
        RequestError
            Not every point was taken.
        """
        points = self.carry()
        if points is None or self._placement is None or self._next is None:
            return
        if len(points) != self._points:
            raise RequestError(f"the lens got {len(points)} of {self._points} points")
        for name, value in lens.measure(points, self._next).items():
            self.values[name][:, self._placement.target - self.stored.first] = value.cpu().numpy()
        self._rows = []
