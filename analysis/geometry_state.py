"""What one pass over rows adds up for the geometry of a run's points; parts can be merged.

Everything is kept for content tokens and for all other rows; together they are the set ``all``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blas_threads import one_blas_thread
from .cka import Cka, cut, hsic
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
    """What resamples are made with, rows of a block of CKA, and blocks of rows drawn before."""

    resamples: int
    seed: int
    cka_rows: int
    before: int = 0


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

    def add(self, block: RowBlock, look: Look, products: NumpyProducts) -> None:
        """Add a block of all points."""
        self.left_out += (block.invalid, block.nonfinite)
        for number, chosen in enumerate(block.sets):
            self.rows[number] += int(chosen.sum())
        products.each(lambda point: self._add_values(point, block, look), range(len(block.h)))
        with one_blas_thread():
            self._add_cosines(block)
        self._add_cka(block, look, products)

    def _add_values(self, point: int, block: RowBlock, look: Look) -> None:
        h = block.h[point]
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
        rows, points, pairs = len(block.row), len(block.h), len(self.upper[0])
        angle, both = np.empty((rows, pairs), np.float32), np.empty((rows, pairs), np.bool_)
        change = np.empty((rows, points - 1), np.float32)
        for first in range(0, rows, COSINE_ROWS):
            part = slice(first, min(rows, first + COSINE_ROWS))
            cosine, usable = _cosines(block.h[:, part])
            for number, chosen in enumerate(block.sets):
                self.cosine[number] += cosine[chosen[part]].sum(axis=0, dtype=np.float64)
                self.compared[number] += usable[chosen[part]].sum(axis=0)
            both[part] = usable[:, self.upper[0], self.upper[1]]
            angle[part] = np.arccos(cosine[:, self.upper[0], self.upper[1]]) / np.pi
            next_ = np.arange(points - 1)
            change[part] = 1 - cosine[:, next_, next_ + 1]
        angle *= both
        self.angle_last += angle[block.last].sum(axis=0, dtype=np.float64)
        self.compared_last += both[block.last].sum(axis=0)
        neighbours = both[:, self.upper[1] == self.upper[0] + 1]
        change *= neighbours
        for number, chosen in enumerate(block.sets):
            if chosen.any():
                self.angle_sum[number] += angle[chosen].sum(axis=0, dtype=np.float64)
                _by_document(self.angle[number], block, chosen, angle, both)
                _by_document(self.influence[number], block, chosen, change, neighbours)

    def _add_cka(self, block: RowBlock, look: Look, products: NumpyProducts) -> None:
        every, at = np.arange(len(block.row)), block.number + self._draws.before
        for number, rows in enumerate((every[block.content], every)):
            draw = np.random.default_rng([self._draws.seed, number, at])
            cuts = cut(rows, self._draws.cka_rows, draw)
            if not cuts:
                continue
            found = np.zeros((len(cuts), len(block.h), len(block.h)))

            def measure(place: int, cuts: Any = cuts, found: Float64 = found) -> None:
                centred = block.h[:, cuts[place]] - look.mean[:, None]
                found[place] = hsic(centred) * len(cuts[place])

            products.each(measure, range(len(cuts)))
            self.cka[number].add(found, len(rows))
            self.cka_draws[number].add(
                np.arange(len(cuts)) + (at << 16),
                found.reshape(len(cuts), -1),
                np.array([[float(len(chosen))] for chosen in cuts]),
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
            centred: dict[int, Float32] = {}

            def centre(
                point: int, number: int = number, chosen: Any = chosen, into: Any = centred
            ) -> None:
                found = block.h[point - first][chosen] - look.mean[point]
                self.sum[number, point] += found.sum(axis=0, dtype=np.float64)
                square = np.einsum("nd,nd->n", found, found, dtype=np.float64)
                self.square[number, point] += square.sum()
                into[point] = found

            def multiply(point: int, number: int = number, held: Any = centred) -> None:
                # A product with itself takes BLAS half the work.
                self.gram[point][number] += held[point].T @ held[point]
                if point in self.cross:
                    self.cross[point][number] += held[point].T @ held[point + 1]

            products.each(centre, self.read)
            products.each(multiply, self.points)

    def merge(self, other: Moments) -> None:
        """Add another's sums."""
        self.rows = self.rows + other.rows
        self.sum = self.sum + other.sum
        self.square = self.square + other.square
        for mine, others in ((self.gram, other.gram), (self.cross, other.cross)):
            for point, values in others.items():
                mine[point] += values


def _cosines(h: Float32) -> tuple[Float32, NDArray[np.bool_]]:
    """Cosines of (points, rows, hidden) between all points, (rows, points, points).

    The second array says where both vectors have a direction; elsewhere the cosine is 0.
    """
    by_row = np.ascontiguousarray(h.transpose(1, 0, 2))
    square = np.einsum("npd,npd->np", by_row, by_row, dtype=np.float64)
    known = square > 0
    by_row /= np.sqrt(np.where(known, square, 1)).astype(np.float32)[:, :, None]
    cosine = np.clip(np.matmul(by_row, by_row.transpose(0, 2, 1)), -1, 1)
    usable = known[:, :, None] & known[:, None, :]
    cosine[~usable] = 0
    return cosine, usable


def _by_document(
    draws: PoissonBootstrap,
    block: RowBlock,
    chosen: NDArray[np.bool_],
    values: Float32,
    counts: NDArray[np.bool_],
) -> None:
    """Add the chosen rows' values, summed by document."""
    numbers, starts = np.unique(block.document[chosen], return_index=True)
    draws.add(
        numbers,
        np.add.reduceat(values[chosen], starts, axis=0, dtype=np.float64),
        np.add.reduceat(counts[chosen], starts, axis=0, dtype=np.float64),
    )
