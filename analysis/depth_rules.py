"""Three rules that read an effective depth off a curve over layers; they may find none.

From "What Affects the Effective Depth of Large Language Models?" (arXiv 2512.14064), as its code
has them, with its parameters as defaults. Curves are over layers 0 to L-1, for the lens over the
points that enter them, so that a depth d uses d+1 of L layers. Where nothing crosses the result is
NaN (the original raises an IndexError).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Shares of the largest divergence and of the five best guesses.
KL_SHARE = 0.5
OVERLAP_LEAST = 0.3


def cosine_depth(cosines: Floats) -> Floats:
    """Last layer l at which the mean cosine turns up through zero: v_l < 0 <= v_{l+1}.

    Parameters
    ----------
    cosines
        (…, 3, layers): of what attention, MLP and whole layer add with what they add it to.

    Returns
    -------
    (…,) float64, NaN where there is none.
    """
    values = cosines.mean(axis=-2)
    crossing = (values[..., :-1] < 0) & (values[..., 1:] >= 0)
    last = crossing.shape[-1] - 1 - np.argmax(crossing[..., ::-1], axis=-1) if crossing.size else 0
    return _where(crossing, last)


def kl_depth(divergence: Floats, share: float = KL_SHARE) -> Floats:
    """First layer whose input's divergence is below a share of the largest: (…, layers) → (…,)."""
    finite = np.isfinite(divergence)
    largest = np.where(finite, divergence, -np.inf).max(axis=-1, keepdims=True)
    crossing = finite & (divergence < share * largest)
    return _where(crossing, np.argmax(crossing, axis=-1))


def overlap_depth(overlap: Floats, least: float = OVERLAP_LEAST) -> Floats:
    """First layer whose input's top-5 overlap is above ``least``: (…, layers) → (…,)."""
    crossing = overlap > least
    return _where(crossing, np.argmax(crossing, axis=-1))


def _where(crossing: NDArray[np.bool_], place: NDArray[np.intp] | int) -> Floats:
    return np.where(crossing.any(axis=-1), place, np.nan)
