"""The logit lens: what the final norm and unembedding make of every point of the stream.

All in float32. The unembedding costs more than the whole body of a small model, so it is applied
once per point and row, in slices of rows: no more than a set budget of bytes is ever held in
arrays of rows × vocabulary, and the final distribution is computed once per slice. Results depend
on the slicing only through the rounding of a matrix product. Source of the measures: Csordás et
al. 2025, section 3 (logit lens; methods.md 1.5), here up to and including point L.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from depthscope.storage.array_names import ARRAYS
from depthscope.storage.errors import RequestError
from depthscope.storage.head import Head
from torch import Tensor

from .placed_head import PlacedHead

LENS_VALUES = ARRAYS["lens"]
"""Names of the lens values: nats, share of 5, 0 or 1, nats, 1 = most probable, probability."""
_TOP = 5
_COLUMN = 64  # logits are searched for their largest in columns of this many
_BLOCK_BYTES = 4 << 20  # a block of logits this large is still in the cache for the next pass


class LensMeasure:
    """Measures the lens values of rows on one device, for one head.

    Parameters
    ----------
    head
        final norm and unembedding of the model.
    budget_bytes
        largest total size of arrays of rows × vocabulary.
    device
        where to compute; holds the unembedding in float32 (4·V·d bytes).

    Raises
    ------
    RequestError
        the budget does not hold a single row.
    """

    def __init__(self, head: Head, budget_bytes: int, device: torch.device | str = "cpu") -> None:
        self._head = PlacedHead(head, device)
        self.device = self._head.device
        self.vocabulary = len(head.unembedding)
        bytes_per_row = 4 * self.vocabulary
        held = budget_bytes // bytes_per_row
        if held < 4:
            raise RequestError(
                f"a lens budget of {budget_bytes} bytes is too small for {self.vocabulary} "
                f"logits a row; give at least {4 * bytes_per_row}"
            )
        self._block = held // 4
        if self.device.type == "cpu":
            self._block = max(1, min(self._block, _BLOCK_BYTES // bytes_per_row))
        # The final logits and one point's logits, and two blocks of scratch.
        self._rows = (held - 2 * self._block) // 2

    def measure(self, points: Tensor, next_ids: Tensor) -> dict[str, Tensor]:
        """Lens values of n rows at every point.

        Parameters
        ----------
        points
            (L+1, n, d), any float dtype and device; the last is h_L.
        next_ids
            (n,) int64, the token that follows each row; -1 where there is none.

        Returns
        -------
        float32 (L+1, n) by name of `LENS_VALUES`: KL(p_l ‖ p_L) and entropy in nats;
        |top5(p_l) ∩ top5(p_L)| / 5; whether the most probable tokens agree; rank of the next
        token (1 + the number of more probable ones) and its probability, NaN where there is
        none. Rows whose logits are not finite give NaN. At point L the KL is exactly 0.
        """
        last, n = points.shape[0] - 1, points.shape[1]
        results = torch.empty((len(LENS_VALUES), last + 1, n), device=self.device)
        next_ids = next_ids.to(self.device)
        rows, block = min(self._rows, n), min(self._block, n)
        spaces = [
            torch.empty((k, self.vocabulary), device=self.device)
            for k in (rows, rows, block, block)
        ]
        with torch.no_grad():
            for start in range(0, n, max(1, rows)):
                part = slice(start, min(start + rows, n))
                self._slice(points[:, part], next_ids[part], spaces, results[:, :, part])
        return dict(zip(LENS_VALUES, results, strict=True))

    def _slice(self, points: Tensor, next_ids: Tensor, spaces: list[Tensor], out: Tensor) -> None:
        """Measure a slice of rows (L+1, r, d) at every point, into ``out`` (6, L+1, r)."""
        n, last = points.shape[1], points.shape[0] - 1
        final, current, *scratch = spaces
        step = len(scratch[0])
        blocks = [slice(k, min(k + step, n)) for k in range(0, n, step)]
        self._head.logits(points[last], final[:n])
        finals = [_describe(final[block], scratch[0]) for block in blocks]
        for point in range(last + 1):
            if point < last:
                self._head.logits(points[point], current[:n])
            for block, reference in zip(blocks, finals, strict=True):
                found = reference
                if point < last:
                    found = _describe(current[block], scratch[0])
                else:
                    torch.exp(reference.shifted, out=scratch[0][: len(reference.shifted)])
                _compare(found, reference, next_ids[block], scratch, out[:, point, block])


class _Softmax(NamedTuple):
    """What is known of the softmax of n rows of logits."""

    shifted: Tensor
    """(n, V) logits less their row's largest."""
    total: Tensor
    """(n,) sum of exp(shifted)."""
    top: Tensor
    """(n, 5) indices of the largest, best first."""


def _describe(logits: Tensor, weights: Tensor) -> _Softmax:
    """Describe n rows of logits; shifts them in place and leaves exp(shifted) in ``weights``."""
    values, top = _largest(logits)
    logits -= values[:, :1]
    return _Softmax(logits, torch.exp(logits, out=weights[: len(logits)]).sum(1), top)


def _largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The five largest of each row, best first, and their indices.

    They lie in the five columns with the largest maxima, so one cheap pass over the row replaces
    a selection over all of it (a tenth of topk's time on a CPU).
    """
    n, vocabulary = logits.shape
    width = vocabulary // _COLUMN
    if width < _COLUMN:
        found = logits.topk(min(_TOP, vocabulary))
        return found.values, found.indices
    whole = width * _COLUMN
    columns = logits[:, :whole].view(n, _COLUMN, width).amax(1).topk(_TOP).indices
    starts = torch.arange(0, whole, width, device=logits.device)
    rest = torch.arange(whole, vocabulary, device=logits.device).expand(n, -1)
    indices = torch.cat([(columns[:, :, None] + starts).flatten(1), rest], 1)
    found = logits.gather(1, indices).topk(_TOP)
    return found.values, indices.gather(1, found.indices)


def _compare(
    found: _Softmax, final: _Softmax, next_ids: Tensor, scratch: list[Tensor], out: Tensor
) -> None:
    """Write the values of `LENS_VALUES` for n rows of one point into ``out`` (6, n).

    The first scratch holds exp(found.shifted); both are overwritten.
    """
    weights, product = (array[: len(next_ids)] for array in scratch)
    log_sum = found.total.log()
    own = torch.mul(weights, found.shifted, out=product).sum(1) / found.total
    other = torch.mul(weights, final.shifted, out=product).sum(1) / found.total
    out[0] = ((own - other) - (log_sum - final.total.log())).clamp_min(0.0)
    shared = (found.top[:, :, None] == final.top[:, None, :]).any(2)
    out[1] = shared.sum(1) / found.top.shape[1]
    out[2] = found.top[:, 0] == final.top[:, 0]
    out[3] = log_sum - own
    chosen = found.shifted.gather(1, next_ids.clamp_min(0)[:, None])
    # Compared into float: summing a boolean array takes five times as long on a CPU.
    out[4] = 1.0 + torch.gt(found.shifted, chosen, out=product).sum(1)
    out[5] = (chosen[:, 0] - log_sum).exp()
    out[4:].masked_fill_(next_ids < 0, torch.nan)
    out.masked_fill_(~(log_sum.isfinite() & final.total.isfinite()), torch.nan)
