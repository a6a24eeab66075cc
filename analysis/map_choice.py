"""Choosing the ridge of every pair on the validation rows, and reducing the rank of a map.

The squared error of a map is a quadratic in the map, and in the eigenbasis of XᵀX a ridge only
rescales rows. So three numbers per eigen-direction and pair, taken in one pass over the validation
rows, give the exact validation error of every ridge at once:
SSE(λ) = Σ‖y‖² - 2·Σᵢ Dᵢaᵢ + Σᵢⱼ DᵢDⱼMᵢⱼ with D = 1/(e + λ). All of it is float64, because the error
of a good map is a small difference of large numbers.

A map of rank k is the best one for the training rows at that ridge: the full map, projected on the
k leading right singular vectors of (e + λ)^(-1/2)·QᵀXᵀY (reduced-rank regression).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .map_moments import Factor, Trained
from .map_plan import Spill
from .map_rows import PairReader, Rows
from .products import Products

Float64 = NDArray[np.float64]

#: Ridges that are tried, as multiples of the mean eigenvalue of XᵀX; 0 is least squares.
RIDGES = (0.0, *(float(f"{10.0 ** (power / 2):.3g}") for power in range(-16, 3)))


@dataclass(frozen=True, eq=False)
class Choice:
    """The ridge of every pair.

    Attributes
    ----------
    ridge
        (sources, targets): λ, in the units of XᵀX, that was chosen.
    scale
        (sources, targets, d): 1 / (e + λ) for each eigen-direction, 0 where XᵀX has none.
    """

    ridge: Float64
    scale: Float64


def choose(
    reader: PairReader,
    validation: Rows,
    trained: Trained,
    ridges: Sequence[float],
    products: Products,
    spill: Spill,
    tick: Callable[[int], None],
) -> Choice:
    """Pass over the validation rows once and choose.

    Parameters
    ----------
    reader, validation
        Where the rows come from, and the numbers of the validation pairs.
    trained
        Factors and means.
    ridges
        Multiples of the mean eigenvalue of each XᵀX.
    products, spill
        Where to compute, and the rotated cross moments.
    tick
        Called after every block with its number of rows.
    """
    sources, targets = len(reader.source), len(reader.target)
    d, width = reader.source.width, reader.target.width
    agreement = np.zeros((sources, targets, d))
    grams = [products.zeros(d, d) for _ in range(sources)]
    square: Float64 = np.zeros(targets)
    vectors = [products.put(trained.factors[s].vectors) for s in range(sources)]
    for block in reader.blocks(validation):
        values = block.target(trained.target_mean)
        parts = values.reshape(len(values), targets, width)
        square += np.einsum("ntd,ntd->nt", parts, parts, dtype=np.float64).sum(axis=0)
        y = products.put(values)
        for source in range(sources):
            x = products.put(block.source(source, trained.factors[source].mean))
            rotated = products.rotate(x, vectors[source])
            products.add_product(grams[source], rotated, rotated)
            maps = products.put(spill.read(source))
            agreement[source] += products.get(products.agreement(rotated, y, maps, width))
        tick(len(block.pairs))
    found = Choice(np.zeros((sources, targets)), np.zeros((sources, targets, d)))
    for source in range(sources):
        gram = products.get(grams[source])
        scales, tried = _candidates(trained.factors[source], ridges, trained.rows)
        errors = _errors(gram, spill.read(source), agreement[source], square, scales, products)
        best = errors.argmin(axis=1)
        found.ridge[source], found.scale[source] = tried[best], scales[best]
    return found


def _errors(
    gram: Float64,
    maps: NDArray[np.float32],
    agreement: Float64,
    square: Float64,
    scales: Float64,
    products: Products,
) -> Float64:
    """Validation errors of a source's maps: (targets, ridges)."""
    targets = len(square)
    width = maps.shape[1] // targets
    errors = np.zeros((targets, len(scales)))

    def evaluate(target: int) -> None:
        part = products.put(maps[:, target * width : (target + 1) * width])
        mixed = gram * products.get(products.spread(part))
        errors[target] = square[target] - 2 * scales @ agreement[target]
        errors[target] += np.einsum("ri,ri->r", scales @ mixed, scales)

    products.each(evaluate, range(targets))
    return errors


def reduce_rank(
    maps: NDArray[np.float32], factor: Factor, scale: Float64, width: int, rank: int
) -> NDArray[np.float32]:
    """Rotated maps of a source, cut to a rank.

    Parameters
    ----------
    maps
        (d, targets · width): rotated cross moments.
    factor
        Of the source.
    scale
        (targets, d): 1 / (e + λ).
    width
        Dimensions of a target.
    rank
        At most so many directions are kept.

    Returns
    -------
    (d, targets · width) float32: moments whose scaled rows are the maps of that rank.
    """
    reduced = np.empty_like(maps)
    for target in range(len(scale)):
        part = slice(target * width, (target + 1) * width)
        moments = maps[:, part].astype(np.float64)
        weighted = np.sqrt(scale[target])[:, None] * moments
        directions = np.linalg.svd(weighted, full_matrices=False)[2][:rank]
        reduced[:, part] = moments @ directions.T @ directions
    return reduced


def _candidates(factor: Factor, ridges: Sequence[float], rows: int) -> tuple[Float64, Float64]:
    """1 / (e + λ) of every ridge, (ridges, d), and the ridges themselves."""
    size = float(factor.values.mean())
    # Least squares through fewer rows than unknowns fits anything; its error says nothing.
    usable = [r for r in ridges if r > 0 or rows > len(factor.values)]
    values = np.array([r * size for r in usable or ridges])
    below = factor.values + values[:, None]
    with np.errstate(divide="ignore"):
        scales = np.where(factor.values > 0, 1 / np.where(below > 0, below, 1), 0.0)
    return scales, values
