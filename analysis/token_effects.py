"""Where in a document things happen: residual erasure and integrated gradients, token by token.

Erasure: by how much the predictions move when the stream at one point and position (or at all
earlier positions) is replaced by its mean. Gradients: how much of the answer's probability comes
from what a layer, attention or MLP adds at a position. Source: Csordás et al. 2025, figure 6
(methods.md 1.6 and 1.7), who show single documents; here every row is kept, with means over
documents and their bootstrap intervals beside them.

Memory: cases · points · rows of float32, the rows of the measured documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
import zarr
from depthscope.storage.effects_arrays import ERASURE_AXES, GRADIENT_AXES, NOISE
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths
from depthscope.storage.token_table import TokenTable
from numpy.typing import NDArray

from .bootstrap import ratio_interval
from .effects import Effects, Kind, open_effects
from .interactions import effects_parameters
from .results import Provenance, result_folder, result_place, reuse_result, save_dataset
from .store import Run
from .summary import Settings
from .token_views import SHOWN_TOKEN

Floats = NDArray[np.float32]


def erasure(
    run: Run, effects: str | None = None, *, partial: bool = False, **settings: Any
) -> xr.Dataset:
    """What erasing the stream changes of the predictions.

    Parameters
    ----------
    run
        From ``open``; a selection of whole documents is respected.
    effects
        Name of a sweep of ``--what erase``; None for the only one.
    partial
        Whether to use an unfinished sweep as far as it is committed.
    settings
        Fields of ``Settings``: resamples, seed, level, out.

    Returns
    -------
    xarray.Dataset
        output_l2 (case, point, row) float32: largest L2 distance of next-token probabilities over
        the measured positions, NaN where nothing was erased or measured; output_l2_mean, _low,
        _high and _max (case, point): mean over documents of the mean over positions, its interval,
        and the largest; count (case) documents; output_noise_floor, of no-op branches. Rows carry
        document, position and token.

    Raises
    ------
    RequestError
        There is no such sweep, or it is not finished.
    """
    found = _Rows.open(run, "erase", effects, partial, settings)
    if isinstance(found, xr.Dataset):
        return found
    values = found.read("output_l2", ERASURE_AXES)
    result = found.dataset(
        {"case": np.array(found.effects.record.scopes), "point": np.arange(values.shape[2])},
        "output_l2",
        found.by_row(values),
        "largest L2 distance of next-token probabilities",
    )
    found.summarise(result, "output_l2", values)
    noise = found.read("noise_output_l2_max", NOISE["noise_output_l2_max"])
    result["output_noise_floor"] = ((), _largest(noise))
    return found.save(result)


def gradients(
    run: Run, effects: str | None = None, *, partial: bool = False, **settings: Any
) -> xr.Dataset:
    """Integrated gradients of the answer's probability.

    Parameters are those of ``erasure``, of a sweep of ``--what gradients``.

    Returns
    -------
    xarray.Dataset
        attribution (case, layer, row) float32, where case is the part; magnitude_mean, _low,
        _high and _max (case, layer) of |attribution|: mean over documents of the mean over
        positions, its interval, and the largest; completeness_gap (case, layer), Σ attribution
        less the change of the answer's probability, mean over documents, completeness_gap_max,
        the largest size of one, and target_change, the mean change that is attributed; count
        (case) documents.

    Raises
    ------
    RequestError
        There is no such sweep, or it is not finished.
    """
    found = _Rows.open(run, "gradients", effects, partial, settings)
    if isinstance(found, xr.Dataset):
        return found
    values = found.read("attribution", GRADIENT_AXES)
    result = found.dataset(
        {"case": np.array(found.effects.record.parts), "layer": np.arange(values.shape[2])},
        "attribution",
        found.by_row(values),
        "integrated gradient of the answer's probability",
    )
    found.summarise(result, "magnitude", np.abs(values))
    gap = found.read("completeness_gap", GRADIENT_AXES[:-1])
    change = found.read("target_value", GRADIENT_AXES[:-1])
    change = change - found.read("baseline_value", GRADIENT_AXES[:-1])
    dims = ("case", "layer")
    result["completeness_gap"] = (dims, _mean(gap, 1), {"units": "1"})
    result["completeness_gap_max"] = (dims, _largest(np.abs(gap), 1), {"units": "1"})
    result["target_change"] = (dims, _mean(change, 1), {"units": "1"})
    return found.save(result)


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows of a sweep's documents, and what a result of them is made of."""

    run: Run
    effects: Effects
    provenance: Provenance
    settings: Settings

    @classmethod
    def open(
        cls, run: Run, kind: Kind, name: str | None, partial: bool, settings: dict[str, Any]
    ) -> _Rows | xr.Dataset:
        """What is to be reduced, or the saved result of the same."""
        chosen = Settings(**settings)
        opened = open_effects(run, name, partial=partial, kind=kind)
        if not len(opened.documents):
            raise RequestError(f"{opened.root}: no document of effects {opened.record.name} is in "
                               "the selection")  # fmt: skip
        analysis = "erasure" if kind == "erase" else kind
        provenance = Provenance.of(run, analysis, effects_parameters(opened, chosen))
        saved = reuse_result(result_place(run, analysis, chosen.out), provenance)
        return cls(run, opened, provenance, chosen) if saved is None else saved

    def read(self, name: str, axes: tuple[str, ...]) -> Floats:
        """An array of the shown documents; what is not committed is NaN."""
        effects, record = self.effects, self.effects.record
        path = StorePaths(effects.root).effects(record.name) / name
        stored: Any = zarr.open_array(path, mode="r")
        values = np.full(stored.shape, np.nan, np.float32)
        for task in effects.tasks:
            cut = {"document": slice(*task.rows)}
            cut |= dict.fromkeys(("point", "layer"), slice(*task.sources))
            block = task.sources[0] // record.sources_per_task
            cut["block"] = slice(block, block + 1)
            place = tuple(cut.get(axis, slice(None)) for axis in axes)
            values[place] = stored[place]
        return np.take(values, effects.places, axis=axes.index("document"))

    def _spans(self) -> list[tuple[int, int]]:
        """First row and tokens of every document."""
        _, starts, lengths = TokenTable(self.effects.root).document_spans()
        return [(int(starts[d]), int(lengths[d])) for d in self.effects.documents]

    def by_row(self, values: Floats) -> Floats:
        """(case, document, point, position) as (case, point, row), the rows of all documents."""
        spans = self._spans()
        return np.concatenate(
            [values[:, n, :, :length] for n, (_, length) in enumerate(spans)], axis=-1
        )

    def dataset(
        self, axes: dict[str, NDArray[Any]], name: str, values: Floats, meaning: str
    ) -> xr.Dataset:
        """The rows' values, with document, position and token beside them."""
        spans = self._spans()
        rows = np.concatenate([first + np.arange(length) for first, length in spans])
        listed = ", ".join(str(number) for number in self.effects.documents)
        found = self.run.sql(
            f"SELECT row, {SHOWN_TOKEN} FROM tokens WHERE document IN ({listed}) ORDER BY row"
        ).fetchall()
        tokens = {int(row): token for row, token in found}
        positions = np.concatenate([np.arange(length) for _, length in spans])
        numbers = np.repeat(self.effects.documents, [length for _, length in spans])
        coordinates = {
            **axes,
            "row": rows,
            "document": ("row", numbers),
            "position": ("row", positions),
            "token": ("row", np.array([tokens.get(int(row), "") for row in rows])),
        }
        dims = (*axes, "row")
        return xr.Dataset({name: (dims, values, {"long_name": meaning, "units": "1"})}, coordinates)

    def summarise(self, result: xr.Dataset, name: str, values: Floats) -> None:
        """Mean over documents of the mean over positions, its interval, largest, and count."""
        dims = tuple(result.dims)[:2]
        each = _mean(values, -1)  # (case, document, point)
        flat = each.transpose(1, 0, 2).reshape(each.shape[1], -1)
        finite = np.isfinite(flat)
        used = finite.any(axis=1)
        low, high = ratio_interval(
            [(np.where(finite, flat, 0)[used], finite[used].astype(np.float64))],
            int(used.sum()),
            flat.shape[1],
            resamples=self.settings.resamples,
            seed=self.settings.seed,
            level=self.settings.level,
        )
        shape = each.shape[0], each.shape[2]
        text = "mean over documents of the mean over positions"
        variables = {
            "mean": (_mean(each, 1), text),
            "low": (low.reshape(shape), f"low end of the {self.settings.level:.0%} interval"),
            "high": (high.reshape(shape), f"high end of the {self.settings.level:.0%} interval"),
            "max": (_largest(_largest(values, -1), 1), "largest of documents and positions"),
        }
        for key, (array, meaning) in variables.items():
            result[f"{name}_{key}"] = (dims, array, {"long_name": meaning, "units": "1"})
        counts = np.isfinite(each).any(axis=2).sum(axis=1)
        result["count"] = (dims[:1], counts, {"long_name": "documents", "units": "document"})

    def save(self, result: xr.Dataset) -> xr.Dataset:
        """The result with its provenance, kept where it belongs."""
        effects, record = self.effects, self.effects.record
        result.attrs = {
            **self.provenance.attributes(),
            "documents": len(effects.documents),
            "effects_tasks": f"{len(effects.tasks)} of {record.tasks}",
            "request": dict(record.request),
        }
        place = result_place(self.run, self.provenance.name, self.settings.out)
        with result_folder(place) as folder:
            save_dataset(result, folder)
        return result


def _mean(values: NDArray[Any], axis: int) -> NDArray[np.float64]:
    """Mean of the finite values; NaN where there is none."""
    finite = np.isfinite(values)
    count = finite.sum(axis)
    total = np.where(finite, values, 0).sum(axis, dtype=np.float64)
    mean: NDArray[np.float64] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean


def _largest(values: NDArray[Any], axis: int | None = None) -> NDArray[Any]:
    """Largest finite value; NaN where there is none."""
    finite = np.isfinite(values)
    most = np.where(finite, values, -np.inf).max(axis)
    found: NDArray[Any] = np.where(finite.any(axis), most, np.nan)
    return found
