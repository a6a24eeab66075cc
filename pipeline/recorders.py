"""What a worker measures of every batch: numbers per token and layer, and lens values."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from .batches import Batch
from .lens import LENS_VALUES, LensMeasure
from .placement import Placement, StoredRange
from .statistics import Scratch, layer_statistics


class StatisticsRecorder:
    """Norms, ratios and cosines of every row of a task, float32 (11, layers, rows)."""

    def __init__(self, layers: int, stored: StoredRange) -> None:
        self.stored = stored
        self.values = np.full((11, layers, stored.last - stored.first), np.nan, np.float32)
        self._placement: Placement | None = None
        self._pending: list[torch.Tensor] = []
        self._scratch = Scratch()

    def begin(self, batch: Batch) -> None:
        """Plan where a batch's numbers go."""
        self._placement = self.stored.of_batch(batch)
        self._pending = []

    def take(self, h: torch.Tensor, a: torch.Tensor, m: torch.Tensor) -> None:
        """Measure one layer of the batch; inputs (lines, width, d)."""
        width = h.shape[-1]
        h, a, m = (x.reshape(-1, width) for x in (h, a, m))
        self._pending.append(layer_statistics(h, a, m, self._scratch))

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
