"""Whether a score rises or falls over ordered levels.

The test is Kendall's tau-b between the level and the score of each document (``scipy.stats``). With
few levels and many documents its numerator is that of the Jonckheere-Terpstra test for ordered
groups (concordant minus discordant pairs), and tau-b's variance allows for the ties that levels
bring. It uses ranks only, so neither the distance between levels nor one extreme document decides
it; with two levels it is the Mann-Whitney test. Its p value is two-sided. Since a p value says
nothing about size, the least-squares slope comes with it, with a bootstrap interval over documents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bootstrap import RatioBootstrap

Floats = NDArray[np.float64]

#: For results' attributes and figures.
TEST = "Kendall's tau-b of level and score over documents, two-sided (ranks; Jonckheere-Terpstra)"


@dataclass(frozen=True)
class Trend:
    """A trend over levels; NaN where fewer than three documents or only one level have a score.

    Attributes
    ----------
    tau, p
        Kendall's tau-b and its two-sided p value.
    slope, slope_low, slope_high
        Least-squares change of the score per unit of level, with its bootstrap interval.
    count
        Documents.
    """

    tau: float
    p: float
    slope: float
    slope_low: float
    slope_high: float
    count: int


def trend(levels: Floats, scores: Floats, *, resamples: int, seed: int, confidence: float) -> Trend:
    """Test scores for a trend.

    Parameters
    ----------
    levels, scores
        (documents,) float64; documents whose score is not finite are left out.
    resamples, seed, confidence
        Of the bootstrap over documents.
    """
    used = np.isfinite(scores) & np.isfinite(levels)
    x, y = levels[used], scores[used]
    if len(x) < 3 or len(np.unique(x)) < 2:
        return Trend(np.nan, np.nan, np.nan, np.nan, np.nan, len(x))
    tau, p = (np.nan, np.nan)
    if len(np.unique(y)) > 1:
        # Imported here: scipy.stats takes a second that no reader of a store should wait for.
        from scipy import stats

        tau, p = stats.kendalltau(x, y, variant="b")
    # Centred, so that the moments below do not cancel.
    x, y = x - x.mean(), y - y.mean()
    moments = np.stack([x, y, x * y, x * x], axis=1)
    bootstrap = RatioBootstrap(len(x), 4, resamples=resamples, seed=seed)
    bootstrap.add(moments, np.ones_like(moments))
    slopes = _slope(*bootstrap.ratios().T)
    slopes = slopes[np.isfinite(slopes)]
    tail = 50 * (1 - confidence)
    low, high = np.percentile(slopes, [tail, 100 - tail]) if len(slopes) else (np.nan, np.nan)
    slope = float(_slope(*moments.mean(axis=0)))
    return Trend(float(tau), float(p), slope, float(low), float(high), len(x))


def _slope(x: Floats, y: Floats, xy: Floats, xx: Floats) -> Floats:
    """Least-squares slopes from means; infinite or NaN where all levels are one."""
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = xx - x * x
        return np.asarray(np.where(spread > 1e-12 * np.abs(xx), (xy - x * y) / spread, np.nan))
