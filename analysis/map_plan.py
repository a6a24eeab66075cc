"""How the moments of all pairs of points are cut so that memory is enough.

XᵀX of a source point and XᵀY of a pair are float64. A *tile* is a run of pairs, in the order of
sources and then targets, whose moments fit the budget; every tile takes one pass over the training
rows, so there are ⌈moments ÷ budget⌉ passes. With one tile everything stays in memory; with more,
what a tile has learned is spilled to a scratch folder as float32, and the held-out rows are still
read once.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

from .map_rows import QUANTUM, Side

#: Rows of a block, at most: products gain nothing beyond.
MOST_ROWS = 4 * QUANTUM

#: Bytes of products in flight, of the solver's working arrays and of allocators.
SLACK = 192 << 20


@dataclass(frozen=True)
class Run:
    """The pairs of one source, by number, with a run of targets (end excluded)."""

    source: int
    first: int
    last: int


@dataclass(frozen=True)
class Plan:
    """What is held and how often rows are read.

    Attributes
    ----------
    block_rows
        Rows of a block.
    tiles
        The pairs of each pass over the training rows.
    moments
        Bytes of the moments of all pairs.
    budget
        Bytes there are for moments.
    """

    block_rows: int
    tiles: tuple[tuple[Run, ...], ...]
    moments: int
    budget: int

    @classmethod
    def of(cls, source: Side, target: Side, sketch: int, memory: int, used: int) -> Plan:
        """Cut the pairs.

        Parameters
        ----------
        source, target
            The two sides.
        sketch
            Dimensions of the sketch of shuffled targets.
        memory
            Bytes that the process may hold.
        used
            Bytes that it holds before it begins.

        Raises
        ------
        RequestError
            The memory is not enough for one pair.
        """
        d, width = source.width, target.width
        # A block and the one read ahead, the centred targets, and predictions or doubles.
        targets = 4 * len(target) * width
        row = 2 * (source.row_bytes + targets) + 2 * targets + 16 * d
        gram, pair = 8 * d * d, 8 * d * (width + sketch)
        kept = len(source) * gram + SLACK
        rows = (memory - used - kept) // 2 // row // QUANTUM * QUANTUM
        rows = int(min(max(rows, QUANTUM), MOST_ROWS))
        budget = memory - used - kept - rows * row
        if budget < pair + gram:
            least = used + kept + QUANTUM * row + pair + gram
            raise RequestError(
                f"maps from {len(source)} to {len(target)} points need at least "
                f"{least / 1e9:.1f} GB, and {memory / 1e9:.1f} GB are allowed: give --memory, or "
                "fewer --source-points or --target-points"
            )
        tiles = tuple(_tiles(len(source), len(target), pair, gram, budget))
        moments = len(source) * (gram + len(target) * pair)
        return cls(rows, tiles, moments, budget)


def held_now() -> int:
    """Bytes that this process holds."""
    return int(psutil.Process().memory_info().rss)


class Spill:
    """A float32 array per source point: in memory, or in files of a scratch folder.

    As a context manager it removes its files.
    """

    def __init__(
        self, sources: int, shape: tuple[int, int], in_memory: bool, folder: Path | None
    ) -> None:
        self._scratch = None
        self._making = threading.Lock()
        self._arrays: list[NDArray[np.float32] | None] = [None] * sources
        self._shape = shape
        if not in_memory:
            self._scratch = tempfile.TemporaryDirectory(prefix="depthscope-maps-", dir=folder)

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *_: object) -> None:
        self._arrays = []
        if self._scratch is not None:
            self._scratch.cleanup()

    def write(self, source: int, first: int, values: NDArray[Any]) -> None:
        """Keep columns from ``first`` on of the array of a source; any thread."""
        array = self._writable(source)
        array[:, first : first + values.shape[1]] = values
        if isinstance(array, np.memmap):
            array.flush()

    def _writable(self, source: int) -> NDArray[np.float32]:
        # Made once: a second array, or a second truncation, would lose what was written before.
        with self._making:
            if self._scratch is not None:
                path = Path(self._scratch.name) / f"{source}.f32"
                return np.memmap(path, np.float32, "r+" if path.exists() else "w+", 0, self._shape)
            held = self._arrays[source]
            if held is None:
                held = self._arrays[source] = np.empty(self._shape, np.float32)
            return held

    def read(self, source: int) -> NDArray[np.float32]:
        """The array of a source."""
        held = self._arrays[source]
        if held is not None:
            return held
        assert self._scratch is not None
        # Read, not mapped: mapped pages would count as this process's memory while it uses them.
        path = Path(self._scratch.name) / f"{source}.f32"
        return np.fromfile(path, np.float32).reshape(self._shape)


def _tiles(
    sources: int, targets: int, pair: int, gram: int, budget: int
) -> Iterator[tuple[Run, ...]]:
    tile: list[Run] = []
    left = budget
    for source in range(sources):
        first = 0
        while first < targets:
            room = (left - gram) // pair
            if room < 1:
                yield tuple(tile)
                tile, left = [], budget
                continue
            last = min(targets, first + room)
            tile.append(Run(source, first, last))
            left -= gram + (last - first) * pair
            first = last
    yield tuple(tile)
