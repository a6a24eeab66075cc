"""Bootstrap intervals over documents for a ratio of sums.

A statistic is Σ sums / Σ counts over documents, which pools their tokens. Documents, not tokens,
are resampled, because tokens of one document are not independent. A resample is a vector of weights
(how often each document was drawn), so all resamples of all statistics are one matrix product per
block of documents: weights (resamples, documents) times sums (documents, statistics).
``scipy.stats.bootstrap`` draws the same resamples but gathers documents × resamples × statistics
values, which for 3 parts of 126 layers and a million documents is beyond any memory; a test holds
the two against each other.

Cost: resamples × documents × statistics multiplications; memory: one block of weights.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

#: Values in a block of weights (32 MB).
WEIGHTS = 1 << 22


class RatioBootstrap:
    """Resamples documents in blocks: add every block in order, then finish.

    Parameters
    ----------
    documents
        Documents there are in all blocks together.
    statistics
        Length of the rows that are added.
    resamples, seed
        How many resamples, and what makes them repeatable.
    """

    def __init__(self, documents: int, statistics: int, *, resamples: int, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._resamples = resamples
        # Draws that each resample still has to make, and documents they may still fall on.
        self._draws = np.full(resamples, documents, dtype=np.int64)
        self._left = documents
        self._sums = np.zeros((resamples, statistics))
        self._counts = np.zeros((resamples, statistics))

    def add(self, sums: Values, counts: Values) -> None:
        """Add the documents' sums and counts, both (documents, statistics) float64."""
        step = max(1, WEIGHTS // self._resamples)
        for first in range(0, len(sums), step):
            weights = self._weights(len(sums[first : first + step]))
            self._sums += weights @ sums[first : first + step]
            self._counts += weights @ counts[first : first + step]

    def _weights(self, documents: int) -> Values:
        """How often each resample draws each of the next documents."""
        # Binomial over blocks, then uniform inside the block, is multinomial over all documents.
        drawn = self._random.binomial(self._draws, documents / self._left)
        self._draws -= drawn
        self._left -= documents
        chosen = self._random.integers(0, documents, size=int(drawn.sum()))
        owner = np.repeat(np.arange(self._resamples), drawn) * documents
        flat = np.bincount(owner + chosen, minlength=self._resamples * documents)
        return flat.reshape(self._resamples, documents).astype(np.float64)

    def ratios(self) -> Values:
        """Every statistic in every resample: (resamples, statistics), NaN without a value."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._sums / self._counts

    def interval(self, level: float) -> tuple[Values, Values]:
        """Percentile interval of every statistic; NaN where a statistic has no value."""
        ratios = self.ratios()
        tail = 50 * (1 - level)
        none = ~np.isfinite(ratios).any(axis=0)
        ratios[:, none] = 0
        low, high = np.nanpercentile(ratios, [tail, 100 - tail], axis=0)
        low[none] = high[none] = np.nan
        return low, high


def ratio_interval(
    blocks: Iterable[tuple[Values, Values]],
    documents: int,
    statistics: int,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Values, Values]:
    """Percentile bootstrap interval of Σ sums / Σ counts over documents.

    Parameters
    ----------
    blocks
        Sums and counts, each (documents of the block, statistics) float64.
    documents, statistics
        Totals over the blocks.
    resamples, seed, level
        Number of resamples, seed of the draws, and coverage of the interval.

    Returns
    -------
    low, high
        (statistics,) float64; NaN where there are fewer than two documents.
    """
    if documents < 2:
        nothing = np.full(statistics, np.nan)
        return nothing, nothing.copy()
    bootstrap = RatioBootstrap(documents, statistics, resamples=resamples, seed=seed)
    for sums, counts in blocks:
        bootstrap.add(sums, counts)
    return bootstrap.interval(level)
