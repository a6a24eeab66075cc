"""At which depth a token becomes a candidate: the onset of a rank, by kind of token.

A token's onset for rank k is the first point at which it is among the k likeliest (``first``), and
the first from which on it always is (``stays``): a rank that is reached is not always kept. Means
are over rows that reach the rank at all; their share is reported beside them. Rows are told apart
by class and by whether the model's final best guess is what follows in the text (``correct``).
Source of the question: "How Do LLMs Use Their Depth?", arXiv 2510.18871.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

from .option_ranks import option_ranks
from .per_document import slice_rows
from .row_classes import ANY, By, OptionClasses, RowClasses, row_classes
from .rows import Piece, RowAxis
from .store import Run
from .summary import Measure, Settings, Summary
from .target_ranks import Ranks, RankSource, StoredRanks, TableRanks, Target, stored_ranks
from .top_tokens import keyed, top_tokens
from .translators import Lens, Translators, lens_translators

#: Rank thresholds by default.
RANKS = (1, 5, 10)
OUTCOMES = ("all", "correct", "incorrect")
CRITERIA = ("first", "stays")

MEASURES = {
    "depth": Measure("point at which the rank is reached", "point", interval=True, counted=True),
    "reached": Measure("share of rows that reach the rank at any point", counted=True),
}
_NAMES = {
    "count": "rows",
    "depth_low": "low",
    "depth_high": "high",
    "depth_count": "count",
    "reached_mean": "reached",
    "reached_count": "class_rows",
}


def onset(
    run: Run,
    by: By = "bucket",
    *,
    target: Target = "final",
    lens: Lens = "logit",
    ranks: Sequence[int] = RANKS,
    frequencies: Path | None = None,
    answer: str | None = None,
    **settings: Any,
) -> xr.Dataset:
    """The depth at which target tokens reach a rank, by class, for both token sets.

    Parameters
    ----------
    run
        From ``open``; a selection by ``where`` is respected.
    by
        ``bucket``: how common the target is. ``pos``: part of speech of the word that begins with
        the token that follows, from the documents' fields ``tokens`` and ``upos``. ``fact``: which
        of how many tokens of the answer follows. ``options``: the rank among the options of a
        multiple-choice question, one row a document (see ``option_ranks``).
    target
        ``final``: the token that the model puts first in the end, from stored residuals. ``next``:
        the token that follows in the text, from the worker's lens values where there are any.
    lens
        ``logit``, or ``tuned`` for ranks by the tuned lens that is saved in the store (also on
        documents that it was trained on); the result's name then ends in ``_tuned``.
    ranks
        Rank thresholds.
    frequencies
        A table of token counts, as in ``token_buckets``, for ``bucket``.
    answer
        Field of the documents that holds the answer, for ``fact`` (None for ``attribute``), or the
        right option, for ``options`` (None for ``answer`` or ``answerKey``).
    settings
        Fields of ``Settings``: resamples, seed, level, out, scheduler, workers, progress.

    Returns
    -------
    xarray.Dataset
        Axes token_set, outcome (all, correct, incorrect), class (the last, any, is all of them),
        criterion (first, stays), rank:
        depth_mean, low, high, count (rows that reach the rank), reached (their share of the
        class's rows), class_rows; rows (token_set).

    Raises
    ------
    RequestError
        The store lacks what is needed, or an argument is none that is known.
    """
    chosen = Settings(**settings)
    _check(target, ranks)
    translators = lens_translators(run, lens)
    classes: RowClasses
    ready: RankSource | None
    if by == "options":
        ready = option_ranks(run, target, answer, translators)
        classes = OptionClasses(ready.tokens, answer)
    else:
        classes = row_classes(run, by, frequencies, answer)
        ready = stored_ranks(run) if target == "next" and translators is None else None
    parameters = {
        **classes.parameters(),
        **keyed(translators),
        "by": by,
        "target": target,
        "ranks": sorted(set(ranks)),
        "source": "statistics" if isinstance(ready, StoredRanks) else "activations",
    }
    summary = Summary(
        "_".join(["onset", *[by] * (by != "bucket"), *[lens] * (lens != "logit")]),
        {
            "outcome": np.array(OUTCOMES),
            "class": np.array([*classes.labels, ANY]),
            "criterion": np.array(CRITERIA),
            "rank": np.array(parameters["ranks"], dtype=np.int64),
        },
        MEASURES,
        parameters,
        _NAMES,
        {"layers": run.layers},
    )
    found = summary.saved(run, chosen)
    if found is not None:
        return found
    with _source(run, target, ready, chosen, translators) as source:
        values = OnsetValues(source, classes, tuple(sorted(set(ranks))))
        return summary.result(run, values, chosen)


def _check(target: str, ranks: Sequence[int]) -> None:
    if target not in ("final", "next"):
        raise RequestError(f"unknown target {target!r}; use final or next")
    if not ranks or min(ranks) < 1:
        raise RequestError("ranks must be at least one whole number from 1 on")


@contextmanager
def _source(
    run: Run,
    target: Target,
    ready: RankSource | None,
    settings: Settings,
    translators: Translators | None,
) -> Iterator[RankSource]:
    if ready is not None:
        yield ready
        return
    with top_tokens(run, settings, translators) as table:
        yield TableRanks(table, run.stored("residual").axis, tuple(run.snapshots), target)


@dataclass(frozen=True, eq=False)
class OnsetValues:
    """Onset depths of every row."""

    source: RankSource
    classes: RowClasses
    ranks: tuple[int, ...]

    names = tuple(MEASURES)

    @property
    def axis(self) -> RowAxis:
        """The rows that have ranks."""
        return self.source.axis

    @property
    def shape(self) -> tuple[int, ...]:
        """(outcome, class, criterion, rank)."""
        return len(OUTCOMES), len(self.classes.labels) + 1, len(CRITERIA), len(self.ranks)

    @property
    def slice_rows(self) -> int:
        """Rows that fit into memory at a time."""
        return slice_rows(len(self.names), self.shape)

    def read(self, piece: Piece) -> NDArray[Any]:
        """(2, outcome, class, criterion, rank, rows) float32; NaN where there is no value."""
        found = self.source.read(piece)
        depths = onset_depths(found.rank, self.source.points, self.ranks)
        known = np.isfinite(found.rank).all(axis=0)
        reached = np.where(known, np.isfinite(depths), np.nan)
        values = np.stack([depths, reached]).astype(np.float32)
        classes = self.classes.of(piece, found)
        inside = classes == np.arange(len(self.classes.labels) + 1)[:, None]
        inside[-1] = classes >= 0
        chosen = _outcomes(found)[:, None] & inside
        return np.where(chosen[None, :, :, None, None], values[:, None, None], np.float32(np.nan))


def onset_depths(
    rank: NDArray[np.float32], points: Sequence[int], ranks: Sequence[int]
) -> NDArray[np.float32]:
    """The points at which rows reach each rank.

    Parameters
    ----------
    rank
        (point, rows) float32.
    points
        What the points are called, ascending.
    ranks
        Thresholds.

    Returns
    -------
    (2, rank, rows) float32: the first point at which rank ≤ k, and the first from which on rank ≤ k
    at every later point; NaN where there is none, or a rank is unknown.
    """
    names = np.asarray(points, dtype=np.float32)
    inside = rank[None] <= np.asarray(ranks, dtype=np.float32)[:, None, None]
    first = np.where(inside.any(axis=1), names[inside.argmax(axis=1)], np.nan)
    # The first point after the last that is outside, seen from the end.
    since = len(names) - np.argmin(inside[:, ::-1], axis=1)
    since = np.where(inside.all(axis=1), 0, since)
    stays = np.where(since < len(names), names[np.minimum(since, len(names) - 1)], np.nan)
    found = np.stack([first, stays]).astype(np.float32)
    found[:, :, ~np.isfinite(rank).all(axis=0)] = np.nan
    return found


def _outcomes(found: Ranks) -> NDArray[np.bool_]:
    """(outcome, rows)."""
    every = np.ones(len(found.correct), np.bool_)
    return np.stack([every, found.correct == 1, found.correct == 0])
