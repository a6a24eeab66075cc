"""How much each layer and sublayer adds to the stream, and in which direction.

Norm ratios ‖a‖/‖h‖, ‖m‖/‖h+a‖ and ‖c‖/‖h‖ (denominators at least 1e-6), and cosines cos(a, h),
cos(m, h+a) and cos(c, h), with c = a + m, averaged over tokens; from the numbers the worker took
while the model ran, or once more from stored activations. Source: Csordás et al. 2025, section 3,
who pool all tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from depthscope.storage.array_names import PARTS
from depthscope.storage.errors import RequestError
from depthscope.storage.shard_reader import widen
from numpy.typing import NDArray

from .per_document import RowValues, slice_rows
from .rows import Piece, RowAxis
from .store import Run
from .stored_arrays import StoredArray
from .stored_values import StoredValues
from .summary import Measure, Settings, Summary

Source = Literal["statistics", "activations"]

#: Denominators of norm ratios are at least this.
CLAMP = 1e-6

#: Bytes of some rows' values in float64, which are compared while a cache holds them; fewer would
#: keep threads waiting for the interpreter.
CACHED_BYTES = 3 << 20

#: Bytes of activations of a slice of rows, if they were float32.
ACTIVATION_BYTES = 8 << 20

MEASURES = {
    "norm_ratio": Measure(
        "norm of what the part adds over the norm of its input", maximum=True, interval=True
    ),
    "cosine": Measure("cosine of what the part adds to its input", interval=True),
}


def contributions(run: Run, source: Source = "statistics", **settings: Any) -> xr.Dataset:
    """Norm ratios and cosines of attention, MLP and whole layer, for both token sets.

    Parameters
    ----------
    run
        From ``open``; a selection by ``where`` is respected.
    source
        ``statistics`` for the worker's numbers of every row, ``activations`` to compute them again
        from the stored residual and sublayer outputs.
    settings
        Fields of ``Settings``: resamples, seed, level, out, scheduler, workers, progress.

    Returns
    -------
    xarray.Dataset
        Axes token_set (all, content), part (attention, mlp, layer), layer; variables
        norm_ratio_mean, _max, _low, _high, cosine_mean, _low, _high, and count (token_set).

    Raises
    ------
    RequestError
        The store lacks the arrays; the message names the option that makes them.
    """
    values: RowValues
    if source == "statistics":
        values = StatisticsValues(tuple(MEASURES), tuple(map(run.stored, MEASURES)))
    elif source == "activations":
        values = ActivationValues.of(run)
    else:
        raise RequestError(f"unknown source {source!r}; use statistics or activations")
    summary = Summary(
        "contributions" if source == "statistics" else f"contributions_{source}",
        {"part": np.array(PARTS), "layer": np.arange(run.layers)},
        MEASURES,
        {"source": source, "clamp": CLAMP},
        additive=True,
    )
    return summary.result(run, values, Settings(**settings))


class StatisticsValues(StoredValues):
    """Ratios and cosines as the worker stored them."""

    def read(self, piece: Piece) -> NDArray[Any]:
        """(2, part, layer, rows) float32."""
        return _without_infinite_bases(super().read(piece))


@dataclass(frozen=True, eq=False)
class ActivationValues:
    """Ratios and cosines computed from stored activations, a layer of a few rows at a time."""

    residual: StoredArray
    attention_output: StoredArray
    mlp_output: StoredArray
    places: tuple[int, ...]
    """Where the points 0 to L-1 are along the residual's first axis."""

    names = tuple(MEASURES)

    @classmethod
    def of(cls, run: Run) -> ActivationValues:
        """Find the arrays.

        Raises
        ------
        RequestError
            An array, or one of the points 0 to L-1, is not stored.
        """
        names = ("residual", "attention_output", "mlp_output")
        residual, attention_output, mlp_output = (run.stored(name) for name in names)
        missing = [layer for layer in range(run.layers) if layer not in run.points]
        if missing:
            raise RequestError(
                f"the points {', '.join(map(str, missing))} are not stored, so contributions "
                "cannot be computed from activations: extract with --points all, or use the "
                "statistics"
            )
        places = tuple(run.points.index(layer) for layer in range(run.layers))
        return cls(residual, attention_output, mlp_output, places)

    @property
    def axis(self) -> RowAxis:
        """Rows whose sublayer outputs are stored."""
        return self.mlp_output.axis

    @property
    def shape(self) -> tuple[int, ...]:
        """(part, layer)."""
        return len(PARTS), len(self.places)

    @property
    def slice_rows(self) -> int:
        """Rows that fit into memory at a time."""
        hidden = self.residual.shape[-1]
        return max(1, min(ACTIVATION_BYTES // (4 * hidden), slice_rows(2, self.shape)))

    def read(self, piece: Piece) -> NDArray[Any]:
        """(2, part, layer, rows) float64."""
        values = np.empty((len(self.names), *self.shape, len(piece)))
        few = max(1, CACHED_BYTES // (3 * 8 * self.residual.shape[-1]))
        for layer, place in enumerate(self.places):
            stored = (
                self.residual.read(piece, place),
                self.attention_output.read(piece, layer),
                self.mlp_output.read(piece, layer),
            )
            for first in range(0, len(piece), few):
                part = slice(first, first + few)
                h, a, m = (widen(array[part]) for array in stored)
                values[:, :, layer, part] = _compare(h, a, m)
        return _without_infinite_bases(values)


def _without_infinite_bases(values: NDArray[Any]) -> NDArray[Any]:
    """Ratios and cosines, (2, ...), with both NaN where either is not finite."""
    # The ratio to an infinite norm is a harmless-looking 0; only the cosine shows it.
    broken = np.logical_not(np.isfinite(values).all(axis=0))
    values[:, broken] = np.nan
    return values


def _compare(
    h: NDArray[np.float32], a: NDArray[np.float32], m: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Norm ratio and cosine of every part and row, (2, part, rows).

    All of them follow from six products of rows, since h + a and a + m need not be formed; float64,
    since squares of massive values overflow and sublayers may cancel.
    """
    wide = [x.astype(np.float64) for x in (h, a, m)]
    with np.errstate(invalid="ignore"):
        hh, aa, mm = (np.vecdot(x, x) for x in wide)
        ah, mh, am = (np.vecdot(wide[i], wide[j]) for i, j in ((1, 0), (2, 0), (1, 2)))
        # Of a, m and a + m; of h, h + a and h; and of the ones with the others.
        size = np.sqrt(np.maximum([aa, mm, aa + 2 * am + mm], 0))
        length = np.sqrt(np.maximum([hh, hh + 2 * ah + aa, hh], 0))
        dot = np.stack([ah, mh + am, ah + mh])
        ratio = size / np.maximum(length, CLAMP)
        cosine = dot / np.maximum(size * length, np.finfo(np.float32).tiny)
    return np.stack([ratio, np.clip(cosine, -1, 1)])
