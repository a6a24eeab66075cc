"""How much each layer does to future positions, document by document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .effect_documents import document_effects
from .effects import Effects

Floats = NDArray[np.float64]

#: On what the effect is measured: what later layers add, or the model's predictions.
MEASURES = ("layer", "output")


@dataclass(frozen=True, eq=False)
class DepthProfiles:
    """Effects e_s of source layers by document, of propagated changes in scope ``future``.

    Attributes
    ----------
    layers
        L.
    documents
        Their numbers.
    mean
        By measure: (document, source) float64, from means over positions and splits; sources are
        0..L-2 for ``layer`` and 0..L-1 for ``output``.
    """

    layers: int
    documents: NDArray[np.int64]
    mean: Mapping[str, Floats]
    _maxima: xr.Dataset

    @classmethod
    def of(cls, effects: Effects, part: str) -> DepthProfiles:
        """Read the effects once; memory is one value per document and layer."""
        found = document_effects(
            effects, {"scope": "future", "kind": "propagated", "part": part}
        ).drop_vars(("scope", "kind", "part"))
        means = xr.Dataset(
            {
                "layer": _over_targets(found["effect_mean"]),
                "output": found["output_l2_mean"].transpose("document", "source"),
            }
        ).compute()
        mean = {"layer": means["layer"].values[:, :-1], "output": means["output"].values}
        return cls(effects.record.layers, effects.documents, mean, found)

    def usable(self, measure: str) -> NDArray[np.bool_]:
        """(document,): which documents have a value for every source."""
        values = self.mean[measure]
        return np.asarray(np.isfinite(values).all(axis=1) & (values.shape[1] > 0))

    def largest(self, measure: str, documents: NDArray[np.bool_]) -> Floats:
        """(source,): from the largest effects of some documents, splits and positions."""
        chosen = self._maxima.isel(document=np.flatnonzero(documents))
        if measure == "output":
            values = chosen["output_l2_max"].max("document").compute().values
            return np.asarray(values, np.float64)
        largest = chosen["effect_max"].max("document").astype(np.float64)
        return np.asarray(_over_targets(largest).compute().values[..., :-1], np.float64)


def centre(profile: Floats) -> Floats:
    """Σ s·e_s / Σ e_s over the last axis; NaN where the effects are zero or not finite."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (profile * np.arange(profile.shape[-1])).sum(axis=-1) / profile.sum(axis=-1)
    return np.asarray(np.where(np.isfinite(found), found, np.nan), np.float64)


def _over_targets(effects: xr.DataArray) -> xr.DataArray:
    """Mean over later layers, source last; a document without one of them has NaN."""
    later = effects["target"] > effects["source"]
    # The sum skips nothing, so that a missing target cannot pass as a weaker source.
    total = effects.where(later, 0).sum("target", skipna=False)
    count = effects.sizes["target"] - 1 - effects["source"]
    return (total / count.where(count > 0)).transpose(..., "source")
