"""Values of rows as the worker stored them: what a reduction of statistics or lens values reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .per_document import slice_rows
from .rows import Piece, RowAxis
from .stored_arrays import StoredArray


@dataclass(frozen=True, eq=False)
class StoredValues:
    """Arrays of one shape over the same rows, one for each value.

    Attributes
    ----------
    names
        Names of the values.
    arrays
        Their arrays, whose last axis is the row.
    """

    names: tuple[str, ...]
    arrays: tuple[StoredArray, ...]

    @property
    def axis(self) -> RowAxis:
        """Rows that have values."""
        return self.arrays[0].axis

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes before the row."""
        return self.arrays[0].shape[:-1]

    @property
    def slice_rows(self) -> int:
        """Rows that fit into memory at a time."""
        return slice_rows(len(self.names), self.shape)

    def read(self, piece: Piece) -> NDArray[Any]:
        """Values of the piece's rows: (names, *shape, rows) float32."""
        return np.stack([array.read(piece) for array in self.arrays])
