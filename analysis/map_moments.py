"""Moments of the training rows, and their factors: everything a map is made of.

For every source point XᵀX, and for every pair XᵀY, are summed over blocks of rows: centred by the
pilot's mean, multiplied in float32, added up in float64, and centred exactly at the end. XᵀX is
factored once, XᵀX = Q·diag(e)·Qᵀ; the rotated cross moments QᵀXᵀY then give the map of any ridge λ
by dividing its rows by e + λ, so one factorisation serves all targets and all ridge values.

To learn what a map finds where there is nothing, the same moments are taken with the target rows
shuffled among 1,024 neighbours, sketched on a few random directions of the target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .map_kept import KeptMoments, MomentsWriter
from .map_plan import Plan, Run, Spill
from .map_rows import QUANTUM, PairBlock, PairReader, Pilot, Rows
from .products import Products
from .spectra import without_rounding

Float64 = NDArray[np.float64]

#: Directions on which shuffled targets are sketched.
SKETCH = 32


@dataclass(eq=False)
class Factor:
    """XᵀX of a source point, factored.

    Attributes
    ----------
    values, vectors
        Eigenvalues, ascending, zero where they are rounding errors; eigenvectors as columns.
    mean
        Mean of the source's training rows.
    shuffled
        Rotated moments with shuffled targets on the sketch: (d, targets · sketch) float64.
    """

    values: Float64
    vectors: Float64
    mean: Float64
    shuffled: Float64

    @classmethod
    def of(cls, gram: Float64, mean: Float64, shuffled: int, products: Products) -> Factor:
        """Factor a centred XᵀX."""
        found, vectors = products.eigh(gram)
        values = without_rounding(found, vectors, gram)
        return cls(values, vectors, mean, np.zeros((len(gram), shuffled)))


@dataclass(eq=False)
class Trained:
    """What the training rows have taught.

    Attributes
    ----------
    factors
        One for each source point.
    target_mean
        (targets · width,) means of the targets' training rows.
    rows
        Training rows that took part.
    sketch
        (width, k) orthonormal directions; exact where k is the width.
    """

    sketch: Float64
    factors: dict[int, Factor] = field(default_factory=dict)
    target_mean: Float64 = field(default_factory=lambda: np.zeros(0))
    rows: int = 0


def train(
    reader: PairReader,
    training: Rows,
    pilots: tuple[Pilot, Pilot],
    plan: Plan,
    products: Products,
    spill: Spill,
    seed: int,
    tick: Callable[[int], None],
    before: KeptMoments | None = None,
    writer: MomentsWriter | None = None,
) -> Trained:
    """Pass over the training rows once for every tile.

    Parameters
    ----------
    reader, training
        Where the rows come from, and the numbers of the training pairs.
    pilots
        Of the source and of the target.
    plan
        Tiles and rows of a block.
    products
        Where to compute.
    spill
        Takes the rotated cross moments, (d, targets · width) float32 for each source.
    seed
        Of the shuffling and the sketch.
    tick
        Called after every block with its number of rows.
    before
        Moments of further training rows, which are added; None for none.
    writer
        Keeps the moments; None does not.
    """
    trained = Trained(_sketch(reader.target.width, seed))
    means = np.zeros((len(reader.target), reader.target.width))
    for tile in plan.tiles:
        totals = _Totals(reader, pilots, trained.sketch, tile, products)
        if before is not None:
            totals.begin(before)
        first = -(-totals.rows // QUANTUM) * QUANTUM
        blocks = reader.blocks(training, totals.sources, totals.targets)
        for number, block in enumerate(blocks):
            totals.add(block, first + number * plan.block_rows, seed)
            tick(len(block.pairs))
        if writer is not None:
            totals.keep(writer)
        trained.rows = totals.rows
        means[totals.targets.start : totals.targets.stop] = totals.target_mean()
        totals.finish(trained.factors, spill)
    trained.target_mean = means.reshape(-1)
    return trained


class _Totals:
    """The moments of one tile."""

    def __init__(
        self,
        reader: PairReader,
        pilots: tuple[Pilot, Pilot],
        sketch: Float64,
        tile: tuple[Run, ...],
        products: Products,
    ) -> None:
        self.tile, self._products, self._pilots = tile, products, pilots
        self.sources = range(tile[0].source, tile[-1].source + 1)
        self.targets = range(min(r.first for r in tile), max(r.last for r in tile))
        self._every_target = len(reader.target)
        d, self._width = reader.source.width, reader.target.width
        self._sketch = products.put(sketch.astype(np.float32))
        self._k = sketch.shape[1]
        self.rows = 0
        self._cross = [products.zeros(d, (r.last - r.first) * self._width) for r in tile]
        self._shuffled = [products.zeros(d, (r.last - r.first) * self._k) for r in tile]
        self._gram = [products.zeros(d, d) for _ in tile]
        self._source_sum = np.zeros((len(tile), d))
        self._target_sum = np.zeros(len(self.targets) * self._width)

    def begin(self, kept: KeptMoments) -> None:
        """Begin with kept moments instead of nothing."""
        put, width = self._products.put, self._width
        sums = kept.load("source_sum"), kept.load("target_sum")
        self.rows = kept.rows
        self._target_sum[:] = sums[1][self.targets.start * width : self.targets.stop * width]
        for number, run in enumerate(self.tile):
            self._source_sum[number] = sums[0][run.source]
            self._gram[number] = put(kept.load(f"gram_{run.source}"))
            for target in range(run.first, run.last):
                both = kept.load(f"pair_{run.source}_{target}")
                cross, shuffled = self._pair(number, target)
                cross[:], shuffled[:] = put(both[:, :width]), put(both[:, width:])

    def keep(self, writer: MomentsWriter) -> None:
        """Keep the moments as they are, around the pilots' means."""
        get = self._products.get
        writer.keep_sums(self.sources, self._source_sum, self.targets, self._target_sum)
        for number, run in enumerate(self.tile):
            writer.save(f"gram_{run.source}", get(self._gram[number]))
            for target in range(run.first, run.last):
                both = [get(moments) for moments in self._pair(number, target)]
                writer.save(f"pair_{run.source}_{target}", np.hstack(both))

    def _pair(self, number: int, target: int) -> tuple[Any, Any]:
        """Views of a run's moments with one target, and with the same shuffled, on the device."""
        at, width, k = target - self.tile[number].first, self._width, self._k
        cross = self._cross[number][:, at * width : (at + 1) * width]
        return cross, self._shuffled[number][:, at * k : (at + 1) * k]

    def add(self, block: PairBlock, first: int, seed: int) -> None:
        """Add a block whose first row has that place among the training rows."""
        products, width = self._products, self._width
        mean = self._pilots[1].mean[self.targets.start : self.targets.stop].reshape(-1)
        values = block.target(mean)
        self.rows += int(block.kept.sum())
        self._target_sum += values.sum(axis=0, dtype=np.float64)
        y = products.put(values)
        lines = y.reshape(-1, width) @ self._sketch
        order = products.put(_shuffle(first, len(values), seed))
        shuffled = lines.reshape(len(values), -1)[order]
        del values, lines
        for number, run in enumerate(self.tile):
            x_values = block.source(run.source, self._pilots[0].mean[run.source])
            self._source_sum[number] += x_values.sum(axis=0, dtype=np.float64)
            x = products.put(x_values)
            a, b = run.first - self.targets.start, run.last - self.targets.start
            products.add_product(self._gram[number], x, x)
            products.add_product(self._cross[number], x, y[:, a * width : b * width])
            products.add_product(self._shuffled[number], x, shuffled[:, a * self._k : b * self._k])

    def target_mean(self) -> Float64:
        """Means of the tile's targets: (targets, width)."""
        pilot = self._pilots[1].mean[self.targets.start : self.targets.stop]
        shift = self._target_sum.reshape(len(self.targets), -1) / max(self.rows, 1)
        return np.asarray(pilot + shift)

    def finish(self, factors: dict[int, Factor], spill: Spill) -> None:
        """Factor sources that have not been, and rotate the cross moments into the spill."""
        for number, run in enumerate(self.tile):
            shift = self._source_sum[number] / max(self.rows, 1)
            if run.source not in factors:
                gram = self._products.get(self._gram[number])
                gram = gram - max(self.rows, 1) * np.outer(shift, shift)
                mean = self._pilots[0].mean[run.source] + shift
                wide = self._every_target * self._k
                factors[run.source] = Factor.of(gram, mean, wide, self._products)
            self._gram[number] = None
            self._rotate(number, run, shift, factors[run.source], spill)
            # What has been rotated is not needed any more; the spill wants its memory.
            self._cross[number] = self._shuffled[number] = None

    def _rotate(self, number: int, run: Run, shift: Float64, factor: Factor, spill: Spill) -> None:
        """Centre and rotate the moments of one source, a target at a time."""
        products, k, width = self._products, self._k, self._width
        sketch = np.asarray(products.get(self._sketch), np.float64)
        vectors, side = products.put(factor.vectors), products.put(shift[:, None])

        def rotate(target: int) -> None:
            own = target - self.targets.start
            sums = self._target_sum[own * width : (own + 1) * width]
            cross, shuffled = self._pair(number, target)
            rotated = vectors.T @ (cross - side @ products.put(sums[None]))
            spill.write(run.source, target * width, products.get(rotated))
            rotated = vectors.T @ (shuffled - side @ products.put((sums @ sketch)[None]))
            factor.shuffled[:, target * k : (target + 1) * k] = products.get(rotated)

        products.each(rotate, range(run.first, run.last))


def _sketch(width: int, seed: int) -> Float64:
    if width <= SKETCH:
        return np.eye(width)
    drawn = np.random.default_rng([seed, width]).standard_normal((width, SKETCH))
    return np.asarray(np.linalg.qr(drawn)[0])


def _shuffle(first: int, count: int, seed: int) -> NDArray[np.int64]:
    """An order of a block's rows that does not depend on how the rows are cut into blocks."""
    parts = []
    for start in range(0, count, QUANTUM):
        draw = np.random.default_rng([seed, 1, (first + start) // QUANTUM])
        parts.append(start + draw.permutation(min(QUANTUM, count - start)))
    return np.concatenate(parts)
