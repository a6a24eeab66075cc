"""The row axis of an array: which stored rows are visible, and which rows of the corpus they are.

A store that holds everything costs no memory here, however long it is: its axis is one range. Holes
left by tasks that are not committed cut it into a few more. Only a selection of rows (of the store,
or by ``Run.where``) is kept as numbers, sixteen bytes a row.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby, pairwise
from typing import Any

import numpy as np
import pandas as pd
from depthscope.storage.spans import Spans
from numpy.typing import NDArray

from .snapshot import Snapshot

Numbers = range | NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Piece:
    """Some rows of one store, ascending.

    Attributes
    ----------
    store
        Which of the opened stores.
    positions
        Their places along the stored axis.
    rows
        Their numbers in the corpus that is analysed (all opened stores together).
    committed
        Points that are committed of them; None where all are.
    """

    store: int
    positions: Numbers
    rows: Numbers
    committed: Spans | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def cut(self, first: int, last: int) -> Piece:
        """The rows at places ``first`` to ``last`` (end excluded) of the piece."""
        return replace(self, positions=self.positions[first:last], rows=self.rows[first:last])

    def take(self, places: NDArray[np.int64]) -> Piece:
        """The rows at these places of the piece, in this order."""
        return replace(self, positions=_take(self.positions, places), rows=_take(self.rows, places))


@dataclass(frozen=True, eq=False)
class RowAxis:
    """The visible rows of a group of arrays, as pieces in ascending order."""

    pieces: tuple[Piece, ...]

    @classmethod
    def of(
        cls,
        snapshots: Sequence[Snapshot],
        group: str,
        selected: NDArray[np.int64] | None = None,
    ) -> RowAxis:
        """The rows of a group that the snapshots show.

        Parameters
        ----------
        snapshots
            The opened stores.
        group
            ``activations``, ``statistics`` or ``lens``; ``tokens`` for the rows of the token table.
        selected
            Ascending corpus rows to keep; None keeps all.
        """
        pieces: list[Piece] = []
        for snapshot in snapshots:
            found = _store_pieces(snapshot, group)
            if selected is None:
                pieces += found
                continue
            for _, alike in groupby(found, key=lambda piece: piece.committed):
                pieces += _select(list(alike), selected)
        return cls(tuple(piece for piece in pieces if len(piece)))

    def __len__(self) -> int:
        return self._ends[-1] if self.pieces else 0

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(piece) for piece in self.pieces))

    @cached_property
    def index(self) -> Any:
        """The corpus rows; a ``RangeIndex`` where they have no gap."""
        pieces = self.pieces
        if not pieces:
            return pd.RangeIndex(0)
        first, last = int(pieces[0].rows[0]), int(pieces[-1].rows[-1])
        if last - first + 1 == len(self):
            return pd.RangeIndex(first, last + 1)
        return pd.Index(np.concatenate([np.asarray(p.rows, dtype=np.int64) for p in pieces]))

    def cut(self, first: int, last: int) -> Iterator[Piece]:
        """The pieces that make up places ``first`` to ``last`` (end excluded) of the axis."""
        at = bisect_right(self._ends, first)
        while first < last:
            begin = self._ends[at] - len(self.pieces[at])
            end = min(last, self._ends[at])
            yield self.pieces[at].cut(first - begin, end - begin)
            first, at = end, at + 1

    def take(self, places: NDArray[np.int64]) -> Iterator[tuple[Piece, NDArray[np.int64]]]:
        """The rows at these places in any order: every piece with where its rows belong."""
        owner = np.searchsorted(self._ends, places, side="right")
        for at in np.unique(owner):
            where = np.flatnonzero(owner == at)
            begin = self._ends[at] - len(self.pieces[at])
            yield self.pieces[at].take(places[where] - begin), where

    def between(self, first_row: int, last_row: int) -> Iterator[Piece]:
        """The visible rows among corpus rows [first_row, last_row)."""
        for piece in self.pieces:
            first, last = _search(piece.rows, first_row), _search(piece.rows, last_row)
            if first < last:
                yield piece.cut(first, last)

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The place of every corpus row along the axis, -1 where it is not visible."""
        return np.asarray(self.index.get_indexer(pd.Index(rows)), dtype=np.int64)

    def counts(
        self, first_rows: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """How many rows are visible in each range of corpus rows; ranges ascend."""
        total = np.zeros(len(first_rows), dtype=np.int64)
        for piece in self.pieces:
            if isinstance(piece.rows, range):
                first = np.clip(first_rows, piece.rows.start, piece.rows.stop)
                last = np.clip(first_rows + lengths, piece.rows.start, piece.rows.stop)
                total += last - first
            else:
                total += np.searchsorted(piece.rows, first_rows + lengths)
                total -= np.searchsorted(piece.rows, first_rows)
        return total

    def blocks(self, rows: int, align: int = 1) -> tuple[int, ...]:
        """Lengths of blocks of at most ``rows`` rows that never mix pieces.

        A block of a range ends at a multiple of ``align`` stored rows, so that no chunk is read
        twice.
        """
        size = max(rows // align, 1) * align
        lengths: list[int] = []
        for piece in self.pieces:
            start = piece.positions[0] if isinstance(piece.positions, range) else 0
            borders = [*range(start - start % size + size, start + len(piece), size)]
            edges = [start, *borders, start + len(piece)]
            lengths += [int(b - a) for a, b in pairwise(edges)]
        return tuple(lengths) or (0,)


def _store_pieces(snapshot: Snapshot, group: str) -> list[Piece]:
    offset, index = snapshot.row_offset, snapshot.index
    if group == "tokens":
        return [
            Piece(index, range(a, b), range(a + offset, b + offset)) for a, b in snapshot.row_ranges
        ]
    stretches = snapshot.ranges(group)
    if snapshot.stores_all_rows(group):
        return [
            Piece(index, range(a, b), range(a + offset, b + offset), committed)
            for a, b, committed in stretches
        ]
    stored = snapshot.stored_rows(group)
    # A selection's shard may reach into the next task's rows: those wait until that task is there.
    seen = snapshot.visible(stored)
    pieces = []
    for first, last, committed in stretches:
        positions = np.arange(first, last, dtype=np.int64)[seen[first:last]]
        pieces.append(Piece(index, _shorten(positions), stored[positions] + offset, committed))
    return pieces


def _select(pieces: Sequence[Piece], selected: NDArray[np.int64]) -> list[Piece]:
    positions, rows = [], []
    for piece in pieces:
        if not len(piece):
            continue
        first, last = np.searchsorted(selected, (piece.rows[0], piece.rows[-1] + 1))
        wanted = selected[first:last]
        if isinstance(piece.rows, range):
            places = wanted - piece.rows.start
        else:
            places = np.searchsorted(piece.rows, wanted)
            hit = piece.rows[places] == wanted
            wanted, places = wanted[hit], places[hit]
        rows.append(wanted)
        positions.append(_take(piece.positions, places))
    if not rows:
        return []
    joined = np.concatenate(positions)
    return [replace(pieces[0], positions=_shorten(joined), rows=_shorten(np.concatenate(rows)))]


def _shorten(numbers: NDArray[np.int64]) -> Numbers:
    """A range where the ascending numbers have no gap."""
    if len(numbers) and int(numbers[-1]) - int(numbers[0]) + 1 == len(numbers):
        return range(int(numbers[0]), int(numbers[-1]) + 1)
    return numbers


def _search(numbers: Numbers, value: int) -> int:
    """Place of the first number that is not smaller."""
    if isinstance(numbers, range):
        return min(max(value - numbers.start, 0), len(numbers))
    return int(np.searchsorted(numbers, value))


def _take(numbers: Numbers, places: NDArray[np.int64]) -> NDArray[np.int64]:
    if isinstance(numbers, range):
        return numbers.start + places
    return numbers[places]
