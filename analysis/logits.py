"""Logits from stored activations: the store's head in float32, a block of vocabulary at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from depthscope.storage.head import Head
from numpy.typing import NDArray

#: Bytes of a block of the unembedding in float32; the whole of it need not fit in that precision.
BLOCK_BYTES = 128 << 20


@dataclass(frozen=True)
class HeadLogits:
    """The head of a store; loaded once in every process that uses it."""

    root: Path

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return len(_load(self.root).unembedding)

    def logits(
        self, rows: NDArray[np.float32], tokens: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Logits of residual rows: soft_cap(scale · (unembedding · norm(h) + bias)).

        Parameters
        ----------
        rows
            (n, hidden) float32.
        tokens
            The tokens whose logits are wanted; None for all.

        Returns
        -------
        (n, tokens) float32.
        """
        head = _load(self.root)
        normed = normalise(rows, head) * np.float32(head.scale)
        unembedding = head.unembedding if tokens is None else head.unembedding[tokens]
        out = np.empty((len(rows), len(unembedding)), np.float32)
        step = max(1, BLOCK_BYTES // (4 * rows.shape[1]))
        for first in range(0, len(unembedding), step):
            block = unembedding[first : first + step].astype(np.float32)
            np.matmul(normed, block.T, out=out[:, first : first + step])
        if head.bias is not None:
            bias = head.bias if tokens is None else head.bias[tokens]
            out += bias.astype(np.float32) * np.float32(head.scale)
        if head.soft_cap is not None:
            cap = np.float32(head.soft_cap)
            out = cap * np.tanh(out / cap)
        return out


def normalise(rows: NDArray[np.float32], head: Head) -> NDArray[np.float32]:
    """The final norm of residual rows, (n, hidden) float32."""
    if head.norm == "layernorm":
        rows = rows - rows.mean(axis=1, keepdims=True)
    square = np.square(rows).mean(axis=1, keepdims=True)
    normed = rows / np.sqrt(square + np.float32(head.epsilon)) * head.weight.astype(np.float32)
    if head.norm_bias is not None:
        normed = normed + head.norm_bias.astype(np.float32)
    return np.asarray(normed, dtype=np.float32)


@lru_cache(maxsize=2)
def _load(root: Path) -> Head:
    return Head.load(root)
