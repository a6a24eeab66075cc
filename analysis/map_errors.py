"""Errors of every map on held-out rows, with the baselines, summed by document.

One pass over the held-out rows. The relative error of a row is ‖y - ŷ‖ / ‖y‖ (‖y‖ at least 1e-6).
Baselines: the training mean; the source's own vector where dimensions agree; and a map trained on
shuffled targets at the same ridge, whose prediction is known on a few random directions only, which
give an unbiased ‖y - ŷ‖².
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .map_choice import Choice, reduce_rank
from .map_moments import Trained
from .map_plan import Spill
from .map_rows import PairBlock, PairReader, Rows
from .products import Float32, Products

Float64 = NDArray[np.float64]

#: Norms of targets are at least this.
CLAMP = 1e-6


@dataclass(eq=False)
class Errors:
    """Sums over held-out rows; documents come first where there are any.

    Attributes
    ----------
    rows
        (documents,) rows that took part.
    relative, square
        (documents, sources, targets): relative errors, and squared errors.
    variation
        (documents, targets): squared distance of the targets from the training mean.
    mean_predictor, identity, shuffled
        (targets,), (sources, targets), (sources, targets): relative errors of the baselines;
        identity is NaN where dimensions differ.
    square_dimension
        (sources, targets, width): squared errors.
    sum_dimension, variation_dimension
        (targets, width): distance from the training mean, and its square.
    """

    rows: NDArray[np.int64]
    relative: Float64
    square: Float64
    variation: Float64
    mean_predictor: Float64
    identity: Float64
    shuffled: Float64
    square_dimension: Float64
    sum_dimension: Float64
    variation_dimension: Float64

    @classmethod
    def none(cls, documents: int, sources: int, targets: int, width: int, same: bool) -> Errors:
        """All zero."""
        pairs = (sources, targets)
        return cls(
            rows=np.zeros(documents, np.int64),
            relative=np.zeros((documents, *pairs)),
            square=np.zeros((documents, *pairs)),
            variation=np.zeros((documents, targets)),
            mean_predictor=np.zeros(targets),
            identity=np.zeros(pairs) if same else np.full(pairs, np.nan),
            shuffled=np.zeros(pairs),
            square_dimension=np.zeros((*pairs, width)),
            sum_dimension=np.zeros((targets, width)),
            variation_dimension=np.zeros((targets, width)),
        )

    def r2(self) -> tuple[Float64, Float64]:
        """R² of all dimensions together, (sources, targets), and of each, (…, width)."""
        count = max(int(self.rows.sum()), 1)
        around = self.variation_dimension - np.square(self.sum_dimension) / count
        with np.errstate(invalid="ignore", divide="ignore"):
            each = np.where(around > 0, 1 - self.square_dimension / around, np.nan)
            total = around.sum(axis=-1)
            pooled = 1 - self.square_dimension.sum(axis=-1) / total
        return np.where(total > 0, pooled, np.nan), each


def measure(
    reader: PairReader,
    test: Rows,
    documents: NDArray[np.int32],
    trained: Trained,
    choice: Choice,
    rank: int | None,
    products: Products,
    spill: Spill,
    tick: Callable[[int], None],
) -> Errors:
    """Pass over the held-out rows once.

    Parameters
    ----------
    reader, test
        Where the rows come from, and the numbers of the held-out pairs, ascending by document.
    documents
        For each of them, the place of its document among the held-out ones.
    trained, choice, rank
        What the maps are made of; None for maps of full rank.
    products, spill
        Where to compute, and the rotated cross moments.
    tick
        Called after every block with its number of rows.
    """
    source, target = reader.source, reader.target
    count = int(documents[-1]) + 1 if len(documents) else 0
    same = source.width == target.width
    errors = Errors.none(count, len(source), len(target), target.width, same)
    vectors = [products.put(trained.factors[s].vectors) for s in range(len(source))]
    if rank is not None:
        for s in range(len(source)):
            factor, scale = trained.factors[s], choice.scale[s]
            spill.write(s, 0, reduce_rank(spill.read(s), factor, scale, target.width, rank))
    first = 0
    for block in reader.blocks(test):
        own = documents[first : first + len(block.pairs)]
        work = _Block.of(block, trained, own, target.width, errors, products)
        for s in range(len(source)):
            x = block.source(s, trained.factors[s].mean)
            rotated = products.rotate(products.put(x), vectors[s])
            maps = _scaled(spill.read(s), choice.scale[s], target.width)
            by_row, by_dimension = products.residuals(
                products.single(rotated), products.put(maps), work.y, target.width
            )
            work.add(errors, s, products.get(by_row))
            errors.square_dimension[s] += products.get(by_dimension).reshape(len(target), -1)
            work.add_shuffled(errors, s, rotated, trained, choice)
            if same:
                work.add_identity(errors, s, x, trained)
        first += len(block.pairs)
        tick(len(block.pairs))
    return errors


def _scaled(moments: Float32, scale: Float64, width: int) -> Float32:
    """Rotated maps: the rows of each target's moments over e + λ, (d, targets · width)."""
    d = len(moments)
    factors = scale.T.astype(np.float32)[:, :, None]
    return (moments.reshape(d, -1, width) * factors).reshape(d, -1)


@dataclass(frozen=True, eq=False)
class _Block:
    """What the maps of all sources need of one block."""

    y: Any
    values: Float32
    kept: NDArray[np.bool_]
    document: NDArray[np.int32]
    starts: NDArray[np.int64]
    length: Float64
    distance: Float64
    sketched: Float64
    products: Products

    @classmethod
    def of(
        cls,
        block: PairBlock,
        trained: Trained,
        documents: NDArray[np.int32],
        width: int,
        errors: Errors,
        products: Products,
    ) -> _Block:
        values = block.target(trained.target_mean)
        parts = values.reshape(len(values), -1, width)
        raw = block.targets.reshape(parts.shape)
        with np.errstate(invalid="ignore", over="ignore"):
            length = np.sqrt(np.einsum("ntd,ntd->nt", raw, raw, dtype=np.float64))
        distance = np.einsum("ntd,ntd->nt", parts, parts, dtype=np.float64)
        document, starts = np.unique(documents, return_index=True)
        length = np.maximum(np.where(block.kept[:, None], length, 1), CLAMP)
        errors.rows[document] += np.add.reduceat(block.kept.astype(np.int64), starts)
        errors.variation[document] += np.add.reduceat(distance, starts)
        errors.mean_predictor += (np.sqrt(distance) / length).sum(axis=0)
        errors.sum_dimension += parts.sum(axis=0, dtype=np.float64)
        errors.variation_dimension += np.einsum("ntd,ntd->td", parts, parts, dtype=np.float64)
        sketched = parts @ trained.sketch.astype(np.float32)
        return cls(
            products.put(values),
            values,
            block.kept,
            document,
            starts,
            length,
            distance,
            sketched.astype(np.float64),
            products,
        )

    def add(self, errors: Errors, source: int, by_row: NDArray[Any]) -> None:
        """Add the squared errors of a source's maps, (rows, targets)."""
        square = by_row.astype(np.float64)
        relative = np.sqrt(square) / self.length
        errors.square[self.document, source] += np.add.reduceat(square, self.starts)
        errors.relative[self.document, source] += np.add.reduceat(relative, self.starts)

    def add_shuffled(
        self, errors: Errors, source: int, rotated: Any, trained: Trained, choice: Choice
    ) -> None:
        """Add the errors of maps that were trained on shuffled targets."""
        moments = trained.factors[source].shuffled
        d, k = len(moments), trained.sketch.shape[1]
        scaled = moments.reshape(d, -1, k) * choice.scale[source].T[:, :, None]
        found = rotated @ self.products.put(scaled.reshape(d, -1))
        guess = self.products.get(found).reshape(self.sketched.shape)
        guess *= self.kept[:, None, None]
        change = np.einsum("ntk,ntk->nt", guess - 2 * self.sketched, guess)
        grown = len(trained.target_mean) / self.distance.shape[1] / k
        square = np.maximum(self.distance + grown * change, 0)
        errors.shuffled[source] += (np.sqrt(square) / self.length).sum(axis=0)

    def add_identity(self, errors: Errors, source: int, x: Float32, trained: Trained) -> None:
        """Add the errors of taking the source's vector for the target's."""
        d = x.shape[1]
        means = trained.target_mean.reshape(-1, d)
        for target, mean in enumerate(means):
            shift = (trained.factors[source].mean - mean).astype(np.float32)
            gap = self.values[:, target * d : (target + 1) * d] - x
            gap -= shift
            square = np.einsum("nd,nd->n", gap, gap).astype(np.float64) * self.kept
            errors.identity[source, target] += (np.sqrt(square) / self.length[:, target]).sum()
