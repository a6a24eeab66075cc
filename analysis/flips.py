"""How often an early best guess is overturned, by how common the guessed token is.

The rate of a bucket at a point is P(best guess there ≠ best guess in the end | the guess there is
in the bucket); the share of a bucket is how often the guess there is in it, and how much of the
five likeliest tokens it holds. Early layers are said to guess common words that later ones replace
by rarer ones. Source: "How Do LLMs Use Their Depth?", arXiv 2510.18871.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .frequencies import BUCKETS, TokenBuckets, token_buckets
from .per_document import slice_rows
from .row_classes import ANY
from .rows import Piece, RowAxis
from .store import Run
from .summary import Measure, Settings, Summary
from .top_token_blocks import CANDIDATES
from .top_tokens import TopTokens, keyed, top_tokens
from .translators import Lens, lens_translators

MEASURES = {
    "rate": Measure(
        "share of rows whose likeliest token is in the bucket and not the final one, of those "
        "whose likeliest token is in the bucket",
        interval=True,
        counted=True,
    ),
    "share": Measure("share of rows whose likeliest token is in the bucket", interval=True),
    "candidate_share": Measure("share of the five likeliest tokens that are in the bucket"),
}
_NAMES = {
    "count": "rows",
    "rate_mean": "rate",
    "rate_low": "low",
    "rate_high": "high",
    "rate_count": "count",
    "share_mean": "share",
    "candidate_share_mean": "candidate_share",
}


def flips(
    run: Run, *, lens: Lens = "logit", frequencies: Path | None = None, **settings: Any
) -> xr.Dataset:
    """Flip rates and shares of the best guesses, by bucket and point, for both token sets.

    Parameters
    ----------
    run
        From ``open``, with stored residuals and their last point; a selection by ``where`` is
        respected.
    lens
        ``logit``, or ``tuned`` for the best guesses of the tuned lens that is saved in the store
        (also on documents that it was trained on); the result is then ``flips_tuned``.
    frequencies
        A table of token counts, as in ``token_buckets``; None counts the stores' own tokens.
    settings
        Fields of ``Settings``: resamples, seed, level, out, scheduler, workers, progress.

    Returns
    -------
    xarray.Dataset
        Axes token_set, bucket (1-10, 11-100, 101-1000, rest, any), point: rate, low, high, count
        (rows whose best guess is in the bucket), share, share_low, share_high, candidate_share
        (of the five likeliest); rows (token_set).

    Raises
    ------
    RequestError
        The store lacks residuals, their last point or the head, or the table cannot be used.
    """
    chosen = Settings(**settings)
    buckets, translators = token_buckets(run, frequencies), lens_translators(run, lens)
    summary = Summary(
        "flips" if translators is None else "flips_tuned",
        {"bucket": np.array([*BUCKETS, ANY]), "point": np.array(run.points, dtype=np.int64)},
        MEASURES,
        {**buckets.parameters(), "candidates": CANDIDATES, **keyed(translators)},
        _NAMES,
        {"layers": run.layers},
    )
    found = summary.saved(run, chosen)
    if found is not None:
        return found
    with top_tokens(run, chosen, translators) as table:
        axis = run.stored("residual").axis
        return summary.result(run, FlipValues(table, axis, buckets), chosen)


@dataclass(frozen=True, eq=False)
class FlipValues:
    """Flips and shares of every row, by bucket and point."""

    table: TopTokens
    axis: RowAxis
    buckets: TokenBuckets

    names = tuple(MEASURES)

    @property
    def shape(self) -> tuple[int, ...]:
        """(bucket, point)."""
        return len(BUCKETS) + 1, len(self.table.points)

    @property
    def slice_rows(self) -> int:
        """Rows that fit into memory at a time."""
        return slice_rows(len(self.names), self.shape)

    def read(self, piece: Piece) -> NDArray[Any]:
        """(3, bucket, point, rows) float32; NaN where there is no value."""
        rows = np.asarray(piece.rows, dtype=np.int64)
        return flip_values(self.table.read(rows, "top"), self.buckets)


def flip_values(top: NDArray[np.int32], buckets: TokenBuckets) -> NDArray[np.float32]:
    """Flips and shares of rows from their likeliest tokens.

    Parameters
    ----------
    top
        (point, rows, candidate) token ids, best first; the last point is the final one; -1 for
        none.
    buckets
        Of the tokens.

    Returns
    -------
    (3, bucket, point, rows) float32: whether the best guess is not the final one, NaN where it is
    in another bucket; whether it is in the bucket; share of the candidates in the bucket.
    """
    points, rows, _ = top.shape
    found = np.full((len(MEASURES), len(BUCKETS) + 1, points, rows), np.nan, np.float32)
    known = (top[:, :, 0] >= 0) & (top[-1, :, 0] >= 0)
    flipped = (top[:, :, 0] != top[-1, :, 0]).astype(np.float32)
    of_top = buckets[top]
    for bucket in range(len(BUCKETS) + 1):
        inside = of_top == bucket if bucket < len(BUCKETS) else of_top >= 0
        found[0, bucket] = np.where(known & inside[:, :, 0], flipped, np.nan)
        found[1, bucket] = np.where(known, inside[:, :, 0], np.nan)
        found[2, bucket] = np.where(known, inside.mean(axis=2), np.nan)
    return found
