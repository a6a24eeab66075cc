"""The likeliest tokens of rows of logits, ranks, and the token that follows each row."""

from __future__ import annotations

import numpy as np
from depthscope.storage.layout import StorePaths
from numpy.typing import NDArray

from .snapshot import Snapshot
from .token_columns import read_columns

Ints = NDArray[np.int64]

#: Columns into which logits are cut to find the largest.
_COLUMNS = 64


def largest(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The tokens with the largest logits, best first, the smaller id first among equals.

    They lie in the columns with the largest maxima, so most of the row is looked at once only.

    Parameters
    ----------
    logits
        (n, vocabulary) float32, all finite.
    count
        How many.

    Returns
    -------
    (n, count) int64.
    """
    n, vocabulary = logits.shape
    width = vocabulary // _COLUMNS
    if width < _COLUMNS:
        return _repeated_argmax(logits.copy(), count)
    whole = width * _COLUMNS
    maxima = logits[:, :whole].reshape(n, _COLUMNS, width).max(axis=2)
    columns = np.sort(_repeated_argmax(maxima, count), axis=1)
    inside = (columns[:, :, None] * width + np.arange(width)).reshape(n, -1)
    rest = np.broadcast_to(np.arange(whole, vocabulary), (n, vocabulary - whole))
    tokens = np.concatenate([inside, rest], axis=1)
    values = np.take_along_axis(logits, tokens, axis=1)
    return np.take_along_axis(tokens, _repeated_argmax(values, count), axis=1)


def rank_of(logits: NDArray[np.float32], target: Ints) -> NDArray[np.int64]:
    """1 + the number of tokens with a larger logit, (n,); 0 where the target is no such token."""
    known = (target >= 0) & (target < logits.shape[1])
    chosen = logits[np.arange(len(logits)), np.where(known, target, 0)]
    ranks = 1 + np.count_nonzero(logits > chosen[:, None], axis=1)
    return np.where(known, ranks, 0)


def _repeated_argmax(values: NDArray[np.float32], count: int) -> Ints:
    """Places of the largest values of each row, best first; overwrites them."""
    found = np.empty((len(values), count), np.int64)
    lines = np.arange(len(values))
    for number in range(count):
        found[:, number] = values.argmax(axis=1)
        values[lines, found[:, number]] = -np.inf
    return found


def next_tokens(snapshot: Snapshot, rows: Ints) -> Ints:
    """The token that follows each row of the corpus in its document, -1 where none does."""
    own = rows - snapshot.row_offset
    after = np.unique(np.concatenate([own, np.minimum(own + 1, snapshot.record.rows - 1)]))
    found = read_columns(StorePaths(snapshot.root).tokens, after, ["document", "token_id"])
    here, there = np.searchsorted(after, own), np.searchsorted(after, own + 1)
    inside = np.minimum(there, len(after) - 1)
    follows = (there < len(after)) & (found["document"][here] == found["document"][inside])
    return np.where(follows, found["token_id"][inside], -1).astype(np.int64)
