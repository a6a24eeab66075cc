"""Where the rank of a target token at every point comes from: the table of best guesses, or the
worker's lens values.

The target is the token that the model itself puts first in the end, or the one that follows in the
text. A row is *correct* where both are the same token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .guesses import next_tokens
from .rows import Piece, RowAxis
from .snapshot import Snapshot
from .store import Run
from .stored_arrays import StoredArray
from .top_tokens import TopTokens

Target = Literal["final", "next"]


class Ranks(NamedTuple):
    """Ranks of some rows.

    Attributes
    ----------
    rank
        (point, rows) float32; 1 is the best, NaN where there is none.
    target
        (rows,) ids of the tokens that are ranked, -1 where unknown.
    following
        (rows,) ids of the tokens that follow, -1 where none does.
    correct
        (rows,) float32: whether the final best guess is what follows; NaN where nothing does.
    """

    rank: NDArray[np.float32]
    target: NDArray[np.int64]
    following: NDArray[np.int64]
    correct: NDArray[np.float32]


class RankSource(Protocol):
    """Reads ranks; sent to the workers."""

    @property
    def axis(self) -> RowAxis:
        """The rows that have ranks."""

    @property
    def points(self) -> tuple[int, ...]:
        """The points that are read, ascending."""

    def read(self, piece: Piece) -> Ranks:
        """Ranks of the piece's rows."""


@dataclass(frozen=True, eq=False)
class TableRanks:
    """Ranks from the table of best guesses."""

    table: TopTokens
    axis: RowAxis
    snapshots: tuple[Snapshot, ...]
    target: Target

    @property
    def points(self) -> tuple[int, ...]:
        """The points of the table."""
        return self.table.points

    def read(self, piece: Piece) -> Ranks:
        """Ranks of the piece's rows."""
        rows = np.asarray(piece.rows, dtype=np.int64)
        final = self.table.read(rows, "top")[-1, :, 0].astype(np.int64)
        following = next_tokens(self.snapshots[piece.store], rows)
        rank = self.table.read(rows, f"{self.target}_rank").astype(np.float32)
        rank[rank == 0] = np.nan
        known = (final >= 0) & (following >= 0)
        correct = np.where(known, final == following, np.nan).astype(np.float32)
        target = final if self.target == "final" else following
        return Ranks(rank, target, following, correct)


@dataclass(frozen=True, eq=False)
class StoredRanks:
    """Ranks of the token that follows, as the worker measured them."""

    next_rank: StoredArray
    snapshots: tuple[Snapshot, ...]
    points: tuple[int, ...]

    @property
    def axis(self) -> RowAxis:
        """The rows that have lens values."""
        return self.next_rank.axis

    def read(self, piece: Piece) -> Ranks:
        """Ranks of the piece's rows."""
        rows = np.asarray(piece.rows, dtype=np.int64)
        rank = self.next_rank.read(piece, as_float32=True)
        following = next_tokens(self.snapshots[piece.store], rows)
        correct = np.where(np.isnan(rank[-1]), np.nan, rank[-1] == 1).astype(np.float32)
        return Ranks(rank, following, following, correct)


def stored_ranks(run: Run) -> StoredRanks | None:
    """The worker's ranks of the tokens that follow; None where the store has none."""
    if not run.has("next_rank"):
        return None
    array = run.stored("next_rank")
    if not len(array.axis):
        return None
    return StoredRanks(array, tuple(run.snapshots), tuple(range(run.layers + 1)))
