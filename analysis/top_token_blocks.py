"""The table of best guesses, computed a block of rows at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from depthscope.storage.errors import RequestError
from depthscope.storage.shard_reader import widen
from numpy.typing import NDArray

from .guesses import Ints, largest, next_tokens, rank_of
from .last_point import residual_to_the_last
from .logits import HeadLogits
from .rows import RowAxis
from .snapshot import Snapshot
from .store import Run
from .stored_arrays import StoredArray
from .translators import Translators

Int32s = NDArray[np.int32]

#: Likeliest tokens that are kept.
CANDIDATES = 5
#: Rows of a block, and bytes of a slice of logits in float32.
BLOCK_ROWS, LOGIT_BYTES = 1024, 64 << 20


@dataclass(frozen=True, eq=False)
class TopTokenBlocks:
    """What a block is computed from; sent to the workers."""

    residual: StoredArray
    snapshots: tuple[Snapshot, ...]
    head: HeadLogits
    points: tuple[int, ...]
    translators: Translators | None = None

    @classmethod
    def of(cls, run: Run, translators: Translators | None = None) -> TopTokenBlocks:
        """The stored rows of a run, as they are or through translators.

        Raises
        ------
        RequestError
            There are no residuals, the last point is not among them, there is no head, or no row.
        """
        root = run.snapshots[0].root
        residual = residual_to_the_last(run, "the final prediction is unknown")
        head = HeadLogits(root)
        if head.vocabulary < 2:
            raise RequestError(f"{root}: the head has {head.vocabulary} tokens, and ranks need two")
        return cls(residual, tuple(run.snapshots), head, run.points, translators)

    @property
    def axis(self) -> RowAxis:
        """The rows."""
        return self.residual.axis

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """Rows of every block."""
        return self.axis.blocks(BLOCK_ROWS)

    @cached_property
    def step(self) -> int:
        """Rows of a slice of logits."""
        return max(1, LOGIT_BYTES // (4 * self.head.vocabulary))

    @property
    def width(self) -> int:
        """Numbers of a row and point: its candidates and two ranks."""
        return min(CANDIDATES, self.head.vocabulary) + 2

    def block(self, number: int) -> Int32s:
        """Candidates and both ranks of the rows of a block: (point, rows, width) int32."""
        first = sum(self.blocks[:number])
        last = first + self.blocks[number]
        following = self._following(first, last)
        points = self.residual.shape[0]
        out = np.empty((points, last - first, self.width), np.int32)
        final = np.full(last - first, -1, np.int64)
        # The last point first: its best guess is ranked at all others.
        for point in reversed(range(points)):
            h = widen(self.residual[point, slice(first, last), slice(None)])
            if self.translators is not None and point < points - 1:
                h = self.translators.apply(self.points[point], h)
            for at in range(0, last - first, self.step):
                part = slice(at, at + self.step)
                logits = self.head.logits(h[part])
                broken = np.logical_not(np.isfinite(logits).all(axis=1))
                logits[broken] = 0
                top = largest(logits, self.width - 2)
                if point == points - 1:
                    final[part] = np.where(broken, -1, top[:, 0])
                out[point, part, :-2] = np.where(broken[:, None], -1, top)
                for column, target in ((-2, final[part]), (-1, following[part])):
                    ranks = rank_of(logits, target)
                    out[point, part, column] = np.where(broken, 0, ranks)
        return out

    def _following(self, first: int, last: int) -> Ints:
        pieces = list(self.axis.cut(first, last))
        return np.concatenate(
            [
                next_tokens(self.snapshots[piece.store], np.asarray(piece.rows, dtype=np.int64))
                for piece in pieces
            ]
        )
