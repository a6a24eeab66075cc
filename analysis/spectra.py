"""How many directions a set of vectors uses, and how far one layer is from linear.

From the centred moments of rows: XᵀX and, for neighbouring points, XᵀY.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .products import NumpyProducts

Float64 = NDArray[np.float64]

#: Eigenvalues below this share, times √d, of the squares in their direction are rounding errors.
ROUNDING = 2.0**-22


def effective_rank(values: Float64) -> float:
    """exp of the entropy of the singular values' shares (Roy and Vetterli 2007).

    ``values`` are eigenvalues of XᵀX, so squares of the singular values of X.
    """
    size = np.sqrt(np.maximum(values, 0))
    total = size.sum()
    if not total > 0:
        return float("nan")
    share = size[size > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def participation_ratio(values: Float64) -> float:
    """(Σ λ)² / Σ λ² of the eigenvalues of XᵀX."""
    square = np.square(values).sum()
    return float(values.sum() ** 2 / square) if square > 0 else float("nan")


def eigenvalues(gram: Float64) -> tuple[Float64, Float64]:
    """Eigenvalues, ascending and zero where they are rounding errors, and eigenvectors."""
    values, vectors = NumpyProducts().eigh(gram)
    return without_rounding(values, vectors, gram), vectors


def without_rounding(values: Float64, vectors: Float64, gram: Float64) -> Float64:
    """Eigenvalues of a matrix of float32 products, zero where they are rounding errors."""
    floor = ROUNDING * len(gram) ** 0.5 * (np.square(vectors).T @ np.diagonal(gram))
    return np.where(values > np.maximum(floor, 0), values, 0.0)


def linearity(values: Float64, vectors: Float64, cross: Float64, square: float) -> float:
    """1 - min_A ‖X̃A - Ỹ‖² with X̃, Ỹ centred and of Frobenius norm 1 (Razzhigaev et al. 2024).

    Parameters
    ----------
    values, vectors
        Eigenvalues and eigenvectors of XᵀX.
    cross
        XᵀY.
    square
        ‖Y‖².
    """
    if not square > 0:
        return float("nan")
    kept = values > 0
    rotated = np.square(vectors[:, kept].T @ cross).sum(axis=1)
    return float((rotated / values[kept]).sum() / square)
