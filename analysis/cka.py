"""Linear CKA between all points, from blocks of rows.

CKA(X, Y) = HSIC(X, Y) / √(HSIC(X, X)·HSIC(Y, Y)), with the unbiased estimator of HSIC (Song et al.
2012) on the Gram matrices XXᵀ and YYᵀ of one block of n rows, averaged over blocks before the ratio
is formed (Nguyen et al. 2021). Averages of unbiased estimates are unbiased, so n is free: the cost
is n·d + n·points multiplications per row and point, linear in the rows, and neither a Gram matrix
of all rows nor the d×d cross moments of any pair are held. One block of all rows is the textbook
formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]

#: Rows of a block, unless another number is asked for.
BLOCK_ROWS = 256

#: The estimator divides by n - 3.
LEAST_ROWS = 4


@dataclass(eq=False)
class Cka:
    """Sums of HSIC over blocks; two of them can be added.

    Attributes
    ----------
    total
        (points, points): HSIC of every pair, weighted by the rows of the block.
    rows
        Rows in all blocks.
    """

    total: Float64
    rows: int = 0

    @classmethod
    def of(cls, points: int) -> Cka:
        """Nothing yet."""
        return cls(np.zeros((points, points)))

    def add(self, found: Float64, rows: int) -> None:
        """Add HSIC of blocks, (blocks, points, points), each times its rows, and all their rows."""
        self.total += found.sum(axis=0)
        self.rows += rows

    def merge(self, other: Cka) -> None:
        """Add another's sums."""
        self.total += other.total
        self.rows += other.rows

    def values(self) -> Float64:
        """CKA of every pair; NaN where a point does not vary."""
        return ratio(self.total)


def hsic(block: Float32) -> Float64:
    """Unbiased HSIC of every pair of points over the rows of a block: (points, points) float64.

    ``block`` is (points, rows, hidden), centred somewhere near its mean.
    """
    points, rows, _ = block.shape
    gram = np.matmul(block, block.transpose(0, 2, 1))
    each = np.arange(rows)
    gram[:, each, each] = 0
    flat = gram.reshape(points, -1)
    sums = gram.sum(axis=2, dtype=np.float64)
    total = sums.sum(axis=1)
    # The terms of the estimator; vectors centred near their mean leave the later ones small.
    found = (flat @ flat.T).astype(np.float64)
    found += np.outer(total, total) / ((rows - 1) * (rows - 2))
    found -= 2 / (rows - 2) * (sums @ sums.T)
    return np.asarray(found / (rows * (rows - 3)))


def ratio(total: NDArray[Any]) -> Float64:
    """CKA from HSIC sums (…, points, points)."""
    own = np.diagonal(total, axis1=-2, axis2=-1)
    scale = np.sqrt(np.maximum(own[..., :, None] * own[..., None, :], 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 0, total / scale, np.nan)


def cut(rows: NDArray[np.int64], size: int, draw: np.random.Generator) -> list[NDArray[np.int64]]:
    """Rows in blocks of about a size, each drawn from all of them; none from fewer than four."""
    if len(rows) < LEAST_ROWS:
        return []
    mixed = draw.permutation(rows)
    return np.array_split(mixed, max(1, round(len(rows) / size)))
