"""Two places on a curve of probe accuracy: where it jumps, and from where it stays.

After "Exploring Concept Depth" (arXiv 2404.07066), which reads both off the ratio of the accuracy
at a point to that at the point before. The jump is the first point whose ratio is at least 1.1. The
convergence point here is the first from which every later ratio lies within 0.03 of 1: with a
condition on single points, a curve that rests and rises again would have converged while it rests.
A curve that never jumps, or still moves at its last point, has none (NaN).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Least ratio of a jump, and how far from 1 ratios may be once the curve has converged.
JUMP, STEADY = 1.1, 0.03


def jump_place(accuracy: Floats, least: float = JUMP) -> Floats:
    """Place of the jump on curves (…, points): (…,) float64."""
    jumps = _ratios(accuracy) >= least
    return np.where(jumps.any(axis=-1), 1 + _first(jumps), np.nan)


def convergence_place(accuracy: Floats, steady: float = STEADY) -> Floats:
    """Place from which curves (…, points) stay: (…,) float64."""
    moving = ~(np.abs(_ratios(accuracy) - 1) < steady)
    # The place after the last move; none where that is the last place.
    after = np.where(moving.any(axis=-1), moving.shape[-1] - _first(moving[..., ::-1]), 0)
    return np.where(after < moving.shape[-1], after, np.nan)


def _ratios(accuracy: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return accuracy[..., 1:] / accuracy[..., :-1]


def _first(found: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Place of the first true along the last axis, 0 where there is none."""
    before = np.asarray(np.cumsum(found, axis=-1) == 0).sum(axis=-1)
    return np.where(found.any(axis=-1), before, 0)
