"""A model's head on one device: logits of rows of the stream before the final norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from depthscope.storage.head import Head
from numpy.typing import NDArray
from torch import Tensor

from .head_export import NORMALISE


class PlacedHead:
    """Final norm and unembedding in float32 on a device (4·V·d bytes).

    Attributes
    ----------
    vocabulary
        V.
    device
        Where it computes.
    """

    def __init__(self, head: Head, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._head = head
        self._weight = self._place(head.weight)
        self._norm_bias = None if head.norm_bias is None else self._place(head.norm_bias)
        self._unembedding = self._place(head.unembedding)
        self._bias = None if head.bias is None else self._place(head.bias) * head.scale
        self.vocabulary = len(head.unembedding)

    def _place(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.array(values, dtype=np.float32)).to(self.device)

    def differentiable(self, rows: Tensor) -> Tensor:
        """As `logits`, with gradients."""
        head = self._head
        normed = NORMALISE[head.norm](rows.to(self.device).float(), head.epsilon) * self._weight
        if self._norm_bias is not None:
            normed = normed + self._norm_bias
        logits = (normed * head.scale) @ self._unembedding.t()
        if self._bias is not None:
            logits = logits + self._bias
        return logits if head.soft_cap is None else (logits / head.soft_cap).tanh() * head.soft_cap

    def logits(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Logits of rows (n, d), any float dtype and device: float32 (n, V)."""
        head = self._head
        normed = NORMALISE[head.norm](rows.to(self.device).float(), head.epsilon) * self._weight
        if self._norm_bias is not None:
            normed += self._norm_bias
        if out is None:
            out = torch.empty((len(rows), self.vocabulary), device=self.device)
        torch.mm(normed * head.scale, self._unembedding.t(), out=out)
        if self._bias is not None:
            out += self._bias
        if head.soft_cap is not None:
            out.div_(head.soft_cap).tanh_().mul_(head.soft_cap)
        return out
