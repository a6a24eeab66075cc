"""Massive activations: where they are, in which dimensions, and how large.

A value is massive where its magnitude exceeds both 100 and 1,000 times the median magnitude at its
point (Sun et al. 2024). The largest three of each point are kept whether massive or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Integers = NDArray[np.int64]

#: How many of the largest values are kept, and what makes a value massive.
KEPT = 3
LEAST, TIMES_MEDIAN = 100.0, 1000.0


@dataclass(eq=False)
class Massive:
    """The largest values of some rows at every point; two of them can be joined.

    Attributes
    ----------
    value
        (points, 3): signed, by falling magnitude; 0 where there are fewer.
    row, position, dimension
        (points, 3): where each is; -1 where there is none.
    count
        (points,): massive values.
    dimensions
        (points, hidden): massive values by dimension.
    """

    value: Float64
    row: Integers
    position: Integers
    dimension: Integers
    count: Integers
    dimensions: Integers

    @classmethod
    def of(cls, points: int, hidden: int) -> Massive:
        """Nothing yet."""
        row, position, dimension = (np.full((points, KEPT), -1, dtype=np.int64) for _ in range(3))
        return cls(
            value=np.zeros((points, KEPT)),
            row=row,
            position=position,
            dimension=dimension,
            count=np.zeros(points, np.int64),
            dimensions=np.zeros((points, hidden), np.int64),
        )

    def add(self, point: int, h: Float32, row: Integers, position: Integers, limit: float) -> None:
        """Add the vectors of some rows, (rows, hidden), at a point."""
        if not h.size:
            return
        size = np.abs(h)
        beyond = size > limit
        if beyond.any():
            self.count[point] += int(beyond.sum())
            self.dimensions[point] += beyond.sum(axis=0)
        largest = size.max(axis=1)
        rows = np.argpartition(-largest, min(KEPT, len(h)) - 1)[:KEPT]
        flat = size[rows].ravel()
        best = np.argpartition(-flat, min(KEPT, len(flat)) - 1)[:KEPT]
        at, dimension = rows[best // h.shape[1]], best % h.shape[1]
        self._keep(point, h[at, dimension].astype(np.float64), row[at], position[at], dimension)

    def merge(self, other: Massive) -> None:
        """Join with another's."""
        self.count += other.count
        self.dimensions += other.dimensions
        for point in range(len(self.count)):
            there = other.row[point] >= 0
            fields = (other.value, other.row, other.position, other.dimension)
            self._keep(point, *(field[point][there] for field in fields))

    def _keep(
        self, point: int, value: Float64, row: Integers, position: Integers, dimension: Integers
    ) -> None:
        joined = np.concatenate([self.value[point], value])
        places = [
            np.concatenate([own[point], new])
            for own, new in (
                (self.row, row), (self.position, position), (self.dimension, dimension)
            )
        ]  # fmt: skip
        # Equal magnitudes keep the earlier row, so that the order of joining does not matter.
        best = np.lexsort((places[2], places[0], -np.abs(joined)))
        best = best[places[0][best] >= 0][:KEPT]
        self.value[point, : len(best)] = joined[best]
        for own, found in zip((self.row, self.position, self.dimension), places, strict=True):
            own[point, : len(best)] = found[best]


def limit(median: float) -> float:
    """The magnitude beyond which a value is massive at a point."""
    return max(LEAST, TIMES_MEDIAN * median) if np.isfinite(median) else float("inf")
