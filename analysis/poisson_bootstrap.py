"""Bootstrap over documents for sums that are taken in any order, in pieces, on several machines.

Each resample weights a document by a Poisson(1) draw that depends on the seed and the document
alone. So a document may be added in pieces, in any order, by several workers whose totals are then
added. Cost: resamples × documents × statistics multiplications; memory: the totals.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


class PoissonBootstrap:
    """Resampled sums and counts of statistics that are ratios of sums.

    Parameters
    ----------
    statistics
        Number of statistics.
    resamples, seed
        How many resamples, and what makes them repeatable.
    one_count
        Whether all statistics have the same counts, which are then held and added once.
    """

    def __init__(
        self, statistics: int, *, resamples: int, seed: int, one_count: bool = False
    ) -> None:
        self._seed = seed
        self.sums = np.zeros((resamples, statistics))
        self.counts = np.zeros((resamples, 1 if one_count else statistics))

    def add(self, documents: NDArray[np.int64], sums: Float64, counts: Float64) -> None:
        """Add sums and counts, (documents, statistics) or (documents, 1), of these documents."""
        weights = np.stack([self._weights(int(number)) for number in documents], axis=1)
        self.sums += weights @ sums
        self.counts += weights @ counts

    def merge(self, other: PoissonBootstrap) -> None:
        """Add another's totals."""
        self.sums += other.sums
        self.counts += other.counts

    def ratios(self) -> Float64:
        """Every statistic in every resample; NaN without a count."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.counts > 0, self.sums / self.counts, np.nan)

    def _weights(self, document: int) -> Float64:
        draw = np.random.default_rng([self._seed, document])
        return draw.poisson(1.0, len(self.sums)).astype(np.float64)


def interval(ratios: Float64, level: float) -> tuple[Float64, Float64]:
    """Percentile interval over the first axis; NaN where every resample is."""
    tail = 50 * (1 - level)
    none = ~np.isfinite(ratios).any(axis=0)
    filled = np.where(none, 0.0, ratios)
    low, high = np.nanpercentile(filled, [tail, 100 - tail], axis=0)
    return np.where(none, np.nan, low), np.where(none, np.nan, high)
