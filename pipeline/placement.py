"""Which rows of a batch a group stores, and where they go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .batches import Batch, Index, Piece

#: Below this mean length of contiguous runs, one indexed copy is faster than many slices.
_RUN_WORTH_A_SLICE = 8


@dataclass(frozen=True)
class Placement:
    """Rows of one batch that one group stores.

    Attributes
    ----------
    source
        int64, places in the flattened (lines × width) batch.
    target
        int64, stored rows of the group.
    """

    source: Index
    target: Index

    def runs(self) -> list[tuple[int, int, int]]:
        """The same as (source, target, length) of contiguous runs."""
        if not len(self.source):
            return []
        breaks = np.flatnonzero((np.diff(self.source) != 1) | (np.diff(self.target) != 1)) + 1
        starts = np.concatenate(([0], breaks))
        lengths = np.diff(np.concatenate((starts, [len(self.source)])))
        return list(
            zip(
                self.source[starts].tolist(),
                self.target[starts].tolist(),
                lengths.tolist(),
                strict=True,
            )
        )


@dataclass(frozen=True)
class StoredRange:
    """The stored rows of one group that one task owns.

    Attributes
    ----------
    first, last
        Range of stored rows, end excluded.
    rows
        int64 (last - first,), the corpus row of each, ascending; None where the group stores every
        row, so that stored and corpus rows are the same numbers.
    """

    first: int
    last: int
    rows: Index | None = None

    def of_piece(self, piece: Piece) -> tuple[Index, Index]:
        """Positions in the piece that are stored, and their stored rows."""
        end = piece.first_row + piece.length
        if self.rows is None:
            target = np.arange(max(self.first, piece.first_row), min(self.last, end))
            return target - piece.first_row, target
        low, high = np.searchsorted(self.rows, (piece.first_row, end))
        return self.rows[low:high] - piece.first_row, self.first + np.arange(low, high)

    def of_batch(self, batch: Batch) -> Placement:
        """Where the batch's rows go."""
        sources, targets = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for piece, offset in zip(batch.pieces, batch.offsets, strict=True):
            positions, target = self.of_piece(piece)
            sources.append(positions + offset)
            targets.append(target)
        return Placement(np.concatenate(sources), np.concatenate(targets))


class RowCopy:
    """Copies the placed rows of a batch into a block, plane after plane.

    One value per batch: the plan of the copy is made once and used for every point.
    """

    def __init__(self, placement: Placement, base: int) -> None:
        self._runs = [(src, dst - base, n) for src, dst, n in placement.runs()]
        self._indexed: tuple[torch.Tensor, torch.Tensor] | None = None
        if len(placement.source) < _RUN_WORTH_A_SLICE * len(self._runs):
            self._indexed = (
                torch.from_numpy(placement.source),
                torch.from_numpy(placement.target - base),
            )

    def __call__(self, hidden: torch.Tensor, block: torch.Tensor) -> None:
        """Copy from ``hidden`` (lines, width, d) into ``block`` (rows, d), converting the dtype."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        if self._indexed is not None:
            source, target = self._indexed
            block.index_copy_(0, target, flat.index_select(0, source.to(flat.device)).to(block))
            return
        for source_row, target_row, length in self._runs:
            block[target_row : target_row + length].copy_(flat[source_row : source_row + length])
