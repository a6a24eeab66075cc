"""Per-token statistics of one layer: norms, norm ratios and cosines (methods.md 1.1, 1.2).

Sums are formed in float32 from the captured h, a, m themselves, never from rounded residuals,
so that a sum that nearly cancels (a layer that erases a massive activation) keeps its digits.
"""

from __future__ import annotations

import torch
from depthscope.storage.array_names import PARTS, QUANTITIES
from torch import Tensor

N_STATISTICS = len(QUANTITIES) + 2 * len(PARTS)
SMALLEST_NORM = 1e-6
"""Denominators of norm ratios are at least this (as in the official code, analyze_norms.py)."""
#: Bytes of one float32 block; the eight blocks of a step then stay in a core's cache.
_BLOCK_BYTES = 288 << 10
#: Up to so many threads, one that stays in its cache is faster than all of them taking turns.
_FEW_THREADS = 4


class Scratch:
    """Blocks that are used again and again, so that no step asks the system for memory."""

    def __init__(self) -> None:
        self._vectors = torch.empty(0)
        self._products = torch.empty(0)

    def blocks(self, like: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """float32 (5, rows, hidden) for h, h_mid, a, m, c, and (3, rows, hidden) for products."""
        shape = (rows, like.shape[-1])
        if self._vectors.shape[1:] != shape or self._vectors.device != like.device:
            self._vectors = torch.empty((5, *shape), dtype=torch.float32, device=like.device)
            self._products = torch.empty((3, *shape), dtype=torch.float32, device=like.device)
        return self._vectors, self._products


def layer_statistics(h: Tensor, a: Tensor, m: Tensor, scratch: Scratch | None = None) -> Tensor:
    """Norms, norm ratios and cosines of one layer for n tokens.

    Parameters
    ----------
    h
        the stream entering the layer, (n, hidden), any float dtype.
    a
        what attention adds, same shape.
    m
        what the MLP adds, same shape.
    scratch
        memory to work in, kept from layer to layer.

    Returns
    -------
    Tensor
        (11, n) float32: the norms of `QUANTITIES` (h_mid = h+a, c = a+m); the ratios
        ‖a‖/‖h‖, ‖m‖/‖h+a‖, ‖c‖/‖h‖ with denominators of at least 1e-6; the cosines of a with h,
        m with h+a, c with h. The cosine with a zero vector is 0; values that are not finite give
        NaN. Source: Csordás et al. 2025, section 3 (norms and cosines of the sublayers).
    """
    scratch = scratch or Scratch()
    result = torch.empty((N_STATISTICS, h.shape[0]), dtype=torch.float32, device=h.device)
    threads = torch.get_num_threads()
    alone = not h.is_cuda and threads <= _FEW_THREADS
    rows = max(16, _BLOCK_BYTES // (4 * h.shape[1])) * (1 if alone else threads)
    rows = max(1, h.shape[0]) if h.is_cuda else rows
    if alone:
        torch.set_num_threads(1)
    try:
        for start in range(0, h.shape[0], rows):
            part = slice(start, start + rows)
            _block(h[part], a[part], m[part], result[:, part], *scratch.blocks(h, rows))
    finally:
        if alone:
            torch.set_num_threads(threads)
    added, base = result[[2, 3, 4]], result[[0, 1, 0]]
    # A finite norm over an infinite one would be a harmless-looking 0.
    ratio = added / base.clamp_min(SMALLEST_NORM)
    result[5:8] = torch.where(base.isfinite(), ratio, torch.nan)
    smallest = torch.finfo(torch.float32).tiny
    result[8:11] = (result[8:11] / (added * base).clamp_min(smallest)).clamp(-1.0, 1.0)
    return result


def _block(h: Tensor, a: Tensor, m: Tensor, out: Tensor, vectors: Tensor, products: Tensor) -> None:
    """Norms and products of a block of rows."""
    vectors, products = vectors[:, : h.shape[0]], products[:, : h.shape[0]]
    stream, middle, attention, mlp, layer = vectors
    stream.copy_(h)
    attention.copy_(a)
    mlp.copy_(m)
    torch.add(stream, attention, out=middle)
    torch.add(attention, mlp, out=layer)
    out[:5] = torch.linalg.vector_norm(vectors, dim=-1)
    torch.mul(attention, stream, out=products[0])
    torch.mul(mlp, middle, out=products[1])
    torch.mul(layer, stream, out=products[2])
    out[8:11] = products.sum(-1)
