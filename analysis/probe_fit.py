"""Linear probes in closed form, from moments by fold.

A probe is the linear discriminant with a ridge: classes share one covariance, (S_w + λI) / n, after
every dimension was scaled to unit variance. Unlike least squares on indicators it hides no class
between two others, and unlike logistic regression it needs XᵀX and sums by class alone: nothing
grows with the number of rows, and one factorisation serves every ridge and the control task. λ is
chosen for each probe by generalised cross-validation of its regression on the training rows, so the
fold that is predicted decides nothing. Penalised discriminant analysis (Hastie, Buja and Tibshirani
1995) gives the discriminant from that regression.

Cost: d² per row and point, and d³ for every fold and point; memory: folds · d² for a point.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .probe_units import Units
from .products import NumpyProducts
from .spectra import without_rounding

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

#: The task and its control.
TASKS = 2

#: Ridges that are tried, as multiples of the number of training rows.
RIDGES = tuple(10.0**power for power in range(-5, 3))


class FoldMoments:
    """XᵀX, and sums by class of both tasks, of the units of every fold.

    Parameters
    ----------
    points, folds, classes, hidden
        How many there are of each.
    """

    def __init__(self, points: int, folds: int, classes: int, hidden: int) -> None:
        self.gram = np.zeros((points, folds, hidden, hidden))
        self.sums = np.zeros((points, folds, TASKS, classes, hidden))
        self.counts = np.zeros((folds, TASKS, classes))

    def add(self, units: Units, fold: NDArray[np.int8], mean: Float32, by: NumpyProducts) -> None:
        """Add units of these folds, less a mean (points, hidden) near theirs."""
        folds, classes = len(self.counts), self.counts.shape[-1]
        member = np.zeros((len(fold), TASKS, classes), np.float32)
        each = np.arange(len(fold))
        member[each, 0, units.label] = member[each, 1, units.control] = 1
        parts = [np.flatnonzero(fold == number) for number in range(folds)]
        for number, mine in enumerate(parts):
            self.counts[number] += member[mine].sum(axis=0, dtype=np.float64)

        def multiply(point: int) -> None:
            centred = units.x[point] - mean[point]
            for number, mine in enumerate(parts):
                some = centred[mine]
                self.gram[point, number] += some.T @ some
                sums = member[mine].reshape(len(mine), TASKS * classes).T @ some
                self.sums[point, number] += sums.reshape(TASKS, classes, -1)

        by.each(multiply, range(len(units.x)))

    def merge(self, other: FoldMoments) -> None:
        """Add another's sums."""
        self.gram += other.gram
        self.sums += other.sums
        self.counts += other.counts


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier of vectors that are centred as its moments were.

    Attributes
    ----------
    weights, bias
        (hidden, classes) and (classes,); a class without training rows has bias -inf.
    ridge
        λ over the training rows.
    """

    weights: Float64
    bias: Float64
    ridge: float


def fit(moments: FoldMoments, point: int, fold: int) -> tuple[Probe, Probe]:
    """The probes of both tasks at a point, trained on all folds but one."""
    counts = moments.counts.sum(axis=0) - moments.counts[fold]
    sums = moments.sums[point].sum(axis=0) - moments.sums[point, fold]
    rows = counts[0].sum()
    mean = sums[0].sum(axis=0) / rows
    gram = moments.gram[point].sum(axis=0) - moments.gram[point, fold]
    gram -= rows * np.outer(mean, mean)
    spread = np.sqrt(np.maximum(np.diagonal(gram), 0) / rows)
    scale = np.where(spread > 0, spread, 1)
    gram /= np.outer(scale, scale)
    found, vectors = NumpyProducts().eigh(gram)
    values = without_rounding(found, vectors, gram)
    made = []
    for task in range(TASKS):
        # XᵀY of centred X and indicators Y, rotated and scaled.
        cross = vectors.T @ ((sums[task] - counts[task][:, None] * mean) / scale).T
        cross[values == 0] = 0
        ridge = _ridge(values, cross, counts[task], rows)
        weights, bias = _discriminant(values, cross, counts[task], ridge)
        weights = (vectors @ weights) / scale[:, None]
        made.append(Probe(weights, bias - mean @ weights, ridge / rows))
    return made[0], made[1]


def _ridge(values: Float64, cross: Float64, counts: Float64, rows: float) -> float:
    """The ridge whose regression on indicators has the least generalised error."""
    square = np.square(cross).sum(axis=1)
    total = (counts * (1 - counts / rows)).sum()
    best, least = RIDGES[-1] * rows, np.inf
    for share in RIDGES:
        ridge = share * rows
        rest = total - (square * (values + 2 * ridge) / np.square(values + ridge)).sum()
        free = 1 - (1 + (values / (values + ridge)).sum()) / rows
        if free > 0 and rest / free**2 < least:
            best, least = ridge, max(rest, 0) / free**2
    return best


def _discriminant(
    values: Float64, cross: Float64, counts: Float64, ridge: float
) -> tuple[Float64, Float64]:
    """Weights, in the rotated dimensions, and bias, for vectors centred on the mean."""
    rows, used = counts.sum(), np.flatnonzero(counts)
    maps = cross[:, used] / (values + ridge)[:, None]
    # Fitted values are discriminant variables up to a metric of classes × classes.
    inner = cross[:, used].T @ maps
    centres = inner / counts[used]
    within = (inner - centres @ inner) / rows
    metric = np.linalg.pinv((within + within.T) / 2, rcond=1e-10, hermitian=True) @ centres
    bias = np.full(len(counts), -np.inf)
    bias[used] = np.log(counts[used] / rows) - (centres * metric).sum(axis=0) / 2
    weights = np.zeros((len(values), len(counts)))
    weights[:, used] = maps @ metric
    return weights, bias
