"""What one pass over rows adds up for the geometry of a run's points; parts can be merged.

Everything is kept for content tokens and for all other rows; together they are the set ``all``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cka import Cka, cut
from .geometry_rows import Look, RowBlock
from .massive import Massive, limit
from .poisson_bootstrap import PoissonBootstrap
from .products import NumpyProducts

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

#: Content rows and others.
SETS = 2

#: A value is near zero below this share of its row's root mean square.
NEAR_ZERO = 0.01

#: Rows whose cosines between all points are formed at a time.
COSINE_ROWS = 128


@dataclass(frozen=True)
class Draws:
    """What resamples are made with, and how many rows a block of CKA has."""

    resamples: int
    seed: int
    cka_rows: int


class Overview:
    """Everything but the moments: takes all points at once."""

    def __init__(self, points: int, hidden: int, draws: Draws) -> None:
        self._draws = draws
        pairs = points * (points - 1) // 2
        self.upper = np.triu_indices(points, 1)
        boot: Mapping[str, Any] = {"resamples": draws.resamples, "seed": draws.seed}
        self.angle = [PoissonBootstrap(pairs, **boot) for _ in range(SETS)]
        self.influence = [PoissonBootstrap(max(points - 1, 0), **boot) for _ in range(SETS)]
        self.cka = [Cka.of(points) for _ in range(SETS)]
        self.cka_draws = [
            PoissonBootstrap(points * points, one_count=True, **boot) for _ in range(SETS)
        ]
        self.cosine = np.zeros((SETS, points, points))
        self.angle_sum = np.zeros((SETS, pairs))
        self.angle_last = np.zeros(pairs)
        self.compared = np.zeros((SETS, points, points))
        self.compared_last = np.zeros(pairs)
        self.direction = np.zeros((SETS, points, hidden))
        self.directed = np.zeros((SETS, points))
        self.near_zero = np.zeros((SETS, points))
        self.massive = [Massive.of(points, hidden) for _ in range(SETS)]
        self.rows = np.zeros(SETS, np.int64)
        self.left_out = np.zeros(2, np.int64)

    def add(self, block: RowBlock, look: Look) -> None:
        """Add a block of all points."""
        self.left_out += (block.invalid, block.nonfinite)
        for number, chosen in enumerate(block.sets):
            self.rows[number] += int(chosen.sum())
        self._add_values(block, look)
        self._add_cosines(block)
        self._add_cka(block, look)

    def _add_values(self, block: RowBlock, look: Look) -> None:
        for point, h in enumerate(block.h):
            square = np.einsum("nd,nd->n", h, h, dtype=np.float64)
            near = np.abs(h) < (NEAR_ZERO * np.sqrt(square / h.shape[1]))[:, None]
            near = near.sum(axis=1)
            length = np.sqrt(square)
            inverse = np.where(length > 0, 1 / np.where(length > 0, length, 1), 0)
            beyond = limit(float(look.magnitude[point]))
            for number, chosen in enumerate(block.sets):
                self.direction[number, point] += inverse[chosen] @ h[chosen]
                self.directed[number, point] += (length[chosen] > 0).sum()
                self.near_zero[number, point] += near[chosen].sum()
                places = block.row[chosen], block.position[chosen]
                self.massive[number].add(point, h[chosen], *places, beyond)

    def _add_cosines(self, block: RowBlock) -> None:
        for first in range(0, len(block.row), COSINE_ROWS):
            part = slice(first, first + COSINE_ROWS)
            h = np.ascontiguousarray(block.h[:, part].transpose(1, 0, 2))
            square = np.einsum("npd,npd->np", h, h, dtype=np.float64)
            known = square > 0
            h /= np.sqrt(np.where(known, square, 1)).astype(np.float32)[:, :, None]
            cosine = np.clip(np.matmul(h, h.transpose(0, 2, 1)).astype(np.float64), -1, 1)
            usable = known[:, :, None] & known[:, None, :]
            cosine[~usable] = 0
            both = usable[:, self.upper[0], self.upper[1]]
            angle = np.arccos(cosine[:, self.upper[0], self.upper[1]]) / np.pi * both
            self._sum_cosines(block, part, cosine, usable, angle, both)

    def _sum_cosines(
        self,
        block: RowBlock,
        part: slice,
        cosine: Float64,
        usable: NDArray[np.bool_],
        angle: Float64,
        both: NDArray[np.bool_],
    ) -> None:
        document, next_ = block.document[part], np.arange(cosine.shape[1] - 1)
        neighbour = cosine[:, next_, next_ + 1]
        counted = usable[:, next_, next_ + 1]
        last = block.last[part]
        self.angle_last += angle[last].sum(axis=0)
        self.compared_last += both[last].sum(axis=0)
        for number, chosen in enumerate(part_of(block, part)):
            if not chosen.any():
                continue
            self.cosine[number] += cosine[chosen].sum(axis=0)
            self.compared[number] += usable[chosen].sum(axis=0)
            self.angle_sum[number] += angle[chosen].sum(axis=0)
            numbers, starts = np.unique(document[chosen], return_index=True)
            for draws, values, counts in (
                (self.angle[number], angle[chosen], both[chosen]),
                (self.influence[number], (1 - neighbour)[chosen] * counted[chosen],
                 counted[chosen]),
            ):  # fmt: skip
                draws.add(
                    numbers,
                    np.add.reduceat(values, starts, axis=0),
                    np.add.reduceat(counts.astype(np.float64), starts, axis=0),
                )

    def _add_cka(self, block: RowBlock, look: Look) -> None:
        every = np.arange(len(block.row))
        for number, rows in enumerate((every[block.content], every)):
            draw = np.random.default_rng([self._draws.seed, number, block.number])
            for place, chosen in enumerate(cut(rows, self._draws.cka_rows, draw)):
                centred = block.h[:, chosen] - look.mean[:, None]
                found = self.cka[number].add(centred) * len(chosen)
                self.cka_draws[number].add(
                    np.array([block.number << 16 | place]),
                    found.reshape(1, -1),
                    np.array([[float(len(chosen))]]),
                )

    def merge(self, other: Overview) -> None:
        """Add another's sums."""
        for name in ("cosine", "angle_sum", "angle_last", "compared", "compared_last", "direction",
                     "directed", "near_zero", "rows", "left_out"):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for number in range(SETS):
            for mine, others in (
                (self.angle, other.angle),
                (self.influence, other.influence),
                (self.cka_draws, other.cka_draws),
            ):
                mine[number].merge(others[number])
            self.cka[number].merge(other.cka[number])
            self.massive[number].merge(other.massive[number])


class Moments:
    """Second moments of a run of points, and cross moments with the point after each.

    Parameters
    ----------
    points
        Numbers of the points whose moments are taken.
    every
        Number of points there are.
    hidden
        Dimensions.
    """

    def __init__(self, points: range, every: int, hidden: int) -> None:
        self.points, self._every = points, every
        self.gram = {p: np.zeros((SETS, hidden, hidden)) for p in points}
        self.cross = {p: np.zeros((SETS, hidden, hidden)) for p in points if p + 1 < every}
        self.sum = np.zeros((SETS, every, hidden))
        self.square = np.zeros((SETS, every))
        self.rows = np.zeros(SETS)

    @property
    def read(self) -> range:
        """Numbers of the points that have to be read."""
        return range(self.points.start, min(self.points.stop + 1, self._every))

    def add(self, block: RowBlock, look: Look, first: int, products: NumpyProducts) -> None:
        """Add a block whose first point has that number."""
        for number, chosen in enumerate(block.sets):
            if not chosen.any():
                continue
            self.rows[number] += chosen.sum()
            before: Float32 | None = None
            for point in self.read:
                centred = block.h[point - first][chosen] - look.mean[point]
                self.sum[number, point] += centred.sum(axis=0, dtype=np.float64)
                self.square[number, point] += np.einsum(
                    "nd,nd->n", centred, centred, dtype=np.float64
                ).sum()
                if before is not None:
                    products.add_product(self.cross[point - 1][number], before, centred)
                if point in self.gram:
                    products.add_product(self.gram[point][number], centred, centred)
                before = centred

    def merge(self, other: Moments) -> None:
        """Add another's sums."""
        self.rows = self.rows + other.rows
        self.sum = self.sum + other.sum
        self.square = self.square + other.square
        for mine, others in ((self.gram, other.gram), (self.cross, other.cross)):
            for point, values in others.items():
                mine[point] += values


def part_of(block: RowBlock, part: slice) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The rows of both sets among a part of a block."""
    return block.content[part], ~block.content[part]
