"""How early the final prediction is there: the logit lens, averaged over tokens.

At every point l the final norm and unembedding turn h_l into a distribution p_l. Reported are
KL(p_l ‖ p_L) in nats, the share of the five likeliest tokens that p_L has too, whether the
likeliest is the same, and the entropy; from the numbers the worker took, or once more from stored
residuals. Source: Csordás et al. 2025, section 3 (here up to and including point L).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

from .contributions import Source
from .logits import HeadLogits
from .per_document import RowValues
from .rows import Piece, RowAxis
from .store import Run
from .stored_arrays import StoredArray
from .stored_values import StoredValues
from .summary import Measure, Settings, Summary

MEASURES = {
    "kl": Measure("KL divergence of the point's to the final distribution", "nat", interval=True),
    "top5_overlap": Measure("share of the five likeliest tokens that are in the final five"),
    "top1_agreement": Measure("share of rows whose likeliest token is the final one"),
    "entropy": Measure("entropy of the point's distribution", "nat"),
}

#: Bytes of a slice of logits in float32; about five arrays of that size live at a time.
LOGIT_BYTES = 64 << 20


def lens(run: Run, source: Source = "statistics", **settings: Any) -> xr.Dataset:
    """The logit lens by point, for both token sets.

    Parameters
    ----------
    run
        From ``open``; a selection by ``where`` is respected.
    source
        ``statistics`` for the worker's lens values, ``activations`` to compute them again from
        stored residuals and the head; then of the rows that have lens values as well, or of all
        stored rows where none has.
    settings
        Fields of ``Settings``: resamples, seed, level, out, scheduler, workers, progress.

    Returns
    -------
    xarray.Dataset
        Axes token_set (all, content), point; variables kl_mean, kl_low, kl_high,
        top5_overlap_mean, top1_agreement_mean, entropy_mean, and count (token_set).

    Raises
    ------
    RequestError
        The store lacks what is needed; the message names the option that makes it.
    """
    values: RowValues
    if source == "statistics":
        values = StoredValues(tuple(MEASURES), tuple(map(run.stored, MEASURES)))
        points: tuple[int, ...] = tuple(range(run.layers + 1))
    elif source == "activations":
        values, points = ActivationValues.of(run), run.points
    else:
        raise RequestError(f"unknown source {source!r}; use statistics or activations")
    summary = Summary(
        "lens" if source == "statistics" else f"lens_{source}",
        {"point": np.array(points, dtype=np.int64)},
        MEASURES,
        {"source": source},
        additive=True,
    )
    return summary.result(run, values, Settings(**settings))


@dataclass(frozen=True, eq=False)
class ResidualLogits:
    """Logits of stored residuals at every stored point, a slice of rows at a time."""

    residual: StoredArray
    head: HeadLogits

    @property
    def axis(self) -> RowAxis:
        """Rows whose residual is stored."""
        return self.residual.axis

    @property
    def shape(self) -> tuple[int, ...]:
        """(point,)."""
        return self.residual.shape[:1]

    @property
    def slice_rows(self) -> int:
        """Rows that fit into memory at a time."""
        return max(1, LOGIT_BYTES // (4 * self.head.vocabulary * self.shape[0]))

    def logits(self, h: NDArray[np.float32]) -> NDArray[np.float32]:
        """(point, rows, vocabulary) of streams (point, rows, hidden)."""
        points, rows, hidden = h.shape
        return self.head.logits(h.reshape(-1, hidden)).reshape(points, rows, -1)


class ActivationValues(ResidualLogits):
    """Lens values computed from stored residuals."""

    names = tuple(MEASURES)

    @classmethod
    def of(cls, run: Run) -> ActivationValues:
        """Find the residuals of the rows that are wanted, and the head.

        Raises
        ------
        RequestError
            There are no residuals, the last point is not among them, or there is no head.
        """
        residual = run.stored("residual")
        if run.layers not in run.points:
            raise RequestError(
                f"the last point, {run.layers}, is not stored, so the lens cannot be computed from "
                "activations: extract with that point, or use the statistics"
            )
        chosen = [s for s in run.snapshots if run.has("kl") and not s.stores_all_rows("lens")]
        if chosen:
            residual = run.at(run.stored("kl").axis.index.to_numpy()).stored("residual")
        return cls(residual, HeadLogits(run.snapshots[0].root))

    def read(self, piece: Piece) -> NDArray[Any]:
        """(4, point, rows) float32."""
        # The last point is the final distribution, because stored points ascend.
        return compare_with_last(self.logits(self.residual.read(piece, as_float32=True)))


def compare_with_last(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """KL, top-5 overlap, top-1 agreement and entropy of every point against the last one.

    Parameters
    ----------
    logits
        (point, rows, vocabulary) float32; overwritten.

    Returns
    -------
    (4, point, rows) float32; NaN for rows whose logits are not finite. At the last point the KL is
    exactly 0 and the overlap exactly 1.
    """
    top = [_largest(of_point) for of_point in logits]
    values = np.empty((len(MEASURES), *logits.shape[:2]), np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        logits -= logits.max(axis=-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        final = logits[-1]
        for point, logs in enumerate(logits):
            p = np.exp(logs)
            values[0, point] = np.maximum((p * (logs - final)).sum(axis=-1), 0)
            shared = (top[point][:, :, None] == top[-1][:, None, :]).any(axis=2)
            values[1, point] = shared.mean(axis=1)
            values[2, point] = top[point][:, 0] == top[-1][:, 0]
            values[3, point] = -(p * logs).sum(axis=-1)
        broken = np.logical_not(np.isfinite(logits).all(axis=-1))
    values[:, broken | broken[-1]] = np.nan
    return values


def _largest(logits: NDArray[np.float32]) -> NDArray[np.intp]:
    """The five largest of each row, best first."""
    count = min(5, logits.shape[1])
    found = np.argpartition(-logits, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(logits, found, axis=1), axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)
