"""From per-document sums to a result: pooled means, maxima, intervals and counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

from .bootstrap import ratio_interval
from .client import Progress, compute_on
from .growth import Growth, find_growth
from .per_document import TOKEN_SETS, Documents, PerDocument, RowValues
from .results import Provenance, result_folder, result_place, reuse_result, save_dataset
from .store import Run
from .task_progress import task_progress


@dataclass(frozen=True)
class Measure:
    """What is reported of one value.

    Attributes
    ----------
    meaning, unit
        For the variables' attributes.
    maximum, interval, counted
        Whether the maximum, the interval of the mean, and the number of values behind each mean
        are reported as well.
    """

    meaning: str
    unit: str = "1"
    maximum: bool = False
    interval: bool = False
    counted: bool = False


@dataclass(frozen=True)
class Settings:
    """How a result is computed.

    Attributes
    ----------
    resamples, seed, level
        Of the bootstrap over documents.
    out
        Where to save the result instead of the store's analysis folder.
    scheduler, workers
        Address and size of ``client.compute_on``; they change no number.
    progress
        Called with the steps done and the steps there are.
    """

    resamples: int = 1000
    seed: int = 0
    level: float = 0.95
    out: Path | None = None
    scheduler: str | None = None
    workers: int | None = None
    progress: Progress | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Summary:
    """An analysis: values of rows, and what is reported of them.

    Attributes
    ----------
    name
        Name of the result.
    coordinates
        Inner axes of the values, in order, with their labels.
    measures
        What is reported, by the values' names.
    parameters
        What decides the numbers beside the bootstrap's settings.
    names
        Other names for variables of the result.
    attributes
        Further attributes of the result, which decide nothing.
    additive
        Whether a row's values depend on its own document alone, so that a saved result can grow.
    """

    name: str
    coordinates: Mapping[str, Any]
    measures: Mapping[str, Measure]
    parameters: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    additive: bool = False

    def provenance(self, run: Run, settings: Settings) -> Provenance:
        """What the result is computed from."""
        parameters = {
            **self.parameters,
            "resamples": settings.resamples,
            "seed": settings.seed,
            "level": settings.level,
        }
        return Provenance.of(run, self.name, parameters)

    def saved(self, run: Run, settings: Settings) -> xr.Dataset | None:
        """The saved result of the same inputs, if there is one."""
        place = result_place(run, self.name, settings.out)
        return reuse_result(place, self.provenance(run, settings))

    def result(self, run: Run, values: RowValues, settings: Settings) -> xr.Dataset:
        """Open the saved result of the same inputs, or compute and save it.

        Raises
        ------
        RequestError
            There are no rows.
        """
        if not len(values.axis):
            raise RequestError(
                f"{self.name} has no rows: nothing is committed yet, or no row was selected"
            )
        found = self.saved(run, settings)
        if found is not None:
            return found
        with result_folder(result_place(run, self.name, settings.out)) as folder:
            self._reduce(run, values, folder, settings)
            dataset = self._summarise(folder, settings)
            made = {**self.attributes, **self.provenance(run, settings).attributes()}
            dataset = dataset.assign_attrs(made)
            save_dataset(dataset, folder)
        return dataset

    def _reduce(self, run: Run, values: RowValues, folder: Path, settings: Settings) -> None:
        documents = Documents.on(run.snapshots, values.axis)
        whole = work = PerDocument(values, run.columns(values.axis), documents)
        growth = self._growth(run, whole, settings)
        if growth is not None:
            work = growth.rest(whole)
        variables = {}
        for name, (dims, array) in work.lazy().items():
            inner = tuple(self.coordinates) if dims[-1] == "*" else ()
            variables[name] = ((*dims[: 2 if inner else len(dims)], *inner), array)
        coordinates = {
            "token_set": np.array(TOKEN_SETS),
            "document": work.documents.number,
            **self.coordinates,
        }
        dataset = xr.Dataset(variables, coords=coordinates)
        if growth is not None:
            dataset = growth.joined(dataset, whole)
        with (
            compute_on(settings.scheduler, workers=settings.workers),
            task_progress(settings.progress),
        ):
            save_dataset(dataset, folder, "documents")

    def _growth(self, run: Run, whole: PerDocument, settings: Settings) -> Growth | None:
        if not self.additive:
            return None
        place = result_place(run, self.name, settings.out)
        provenance = self.provenance(run, settings)
        return find_growth(place, provenance, run, whole.documents, whole.values.axis)

    def _summarise(self, folder: Path, settings: Settings) -> xr.Dataset:
        with xr.open_zarr(folder, group="documents", consolidated=False) as kept:
            with compute_on(workers=settings.workers):
                totals = _totals(kept, self.measures).compute()
            result = xr.Dataset(coords={"token_set": np.array(TOKEN_SETS), **self.coordinates})
            for name, measure in self.measures.items():
                self._add(result, name, measure, totals)
                if measure.interval:
                    low, high = _intervals(kept, name, totals["documents"].values, settings)
                    label = f"{round(100 * settings.level)}% bootstrap interval over documents"
                    for end, values in (("low", low), ("high", high)):
                        result[f"{name}_{end}"] = (
                            ("token_set", *self.coordinates),
                            values,
                            {"long_name": f"{measure.meaning}: {end} end of the {label}",
                             "units": measure.unit},
                        )  # fmt: skip
        result["count"] = (
            totals["rows"]
            .drop_vars("token_set")
            .assign_attrs(long_name="rows in the token set", units="row")
        )
        return result.rename(self.names).assign_attrs(_counts(totals, self.measures))

    def _add(self, result: xr.Dataset, name: str, measure: Measure, totals: xr.Dataset) -> None:
        count = totals[f"{name}_count"]
        mean = (totals[f"{name}_sum"] / count).where(count > 0)
        result[f"{name}_mean"] = mean.assign_attrs(
            long_name=f"{measure.meaning}: mean over tokens", units=measure.unit
        )
        if measure.maximum:
            result[f"{name}_max"] = totals[f"{name}_max"].where(count > 0).assign_attrs(
                long_name=f"{measure.meaning}: largest of all tokens", units=measure.unit
            )  # fmt: skip
        if measure.counted:
            result[f"{name}_count"] = count.assign_attrs(
                long_name=f"{measure.meaning}: values behind the mean", units="row"
            )


def _totals(kept: xr.Dataset, measures: Mapping[str, Measure]) -> xr.Dataset:
    found = {
        "rows": kept["rows"].sum("document"),
        "documents": (kept["rows"] > 0).sum("document"),
        "invalid_rows": kept["invalid_rows"].sum("document"),
    }
    for name in measures:
        found[f"{name}_sum"] = kept[f"{name}_sum"].sum("document")
        found[f"{name}_count"] = kept[f"{name}_count"].sum("document")
        found[f"{name}_max"] = kept[f"{name}_max"].max("document")
    return xr.Dataset(found)


def _intervals(
    kept: xr.Dataset, name: str, documents: NDArray[np.int64], settings: Settings
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Interval of a value's mean for every token set: two arrays (token_set, ...)."""
    sums, counts = kept[f"{name}_sum"], kept[f"{name}_count"]
    shape = sums.shape[2:]
    size = int(np.prod(shape))
    ends: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for number in range(len(TOKEN_SETS)):
        blocks = document_blocks(kept["rows"], sums, counts, number)
        ends.append(
            ratio_interval(
                blocks,
                int(documents[number]),
                size,
                resamples=settings.resamples,
                seed=settings.seed,
                level=settings.level,
            )
        )
    low, high = (np.stack(end).reshape(len(TOKEN_SETS), *shape) for end in zip(*ends, strict=True))
    return low, high


def document_blocks(
    rows: xr.DataArray, sums: xr.DataArray, counts: xr.DataArray, token_set: int
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Sums and counts of the documents with rows in a token set, a stored block at a time."""
    first = 0
    for length in sums.chunks[0] if sums.chunks else (sums.shape[0],):
        chosen = {"document": slice(first, first + length), "token_set": token_set}
        used = rows.isel(chosen).values > 0
        block = [array.isel(chosen).values.reshape(length, -1)[used] for array in (sums, counts)]
        yield block[0].astype(np.float64), block[1].astype(np.float64)
        first += length


def _counts(totals: xr.Dataset, measures: Mapping[str, Measure]) -> dict[str, Any]:
    rows = int(totals["rows"].sel(token_set="all"))
    missing = 0
    for name in measures:
        count = totals[f"{name}_count"].sel(token_set="all")
        missing += int(rows * count.size - count.sum())
    return {
        "documents": dict(zip(TOKEN_SETS, totals["documents"].values.tolist(), strict=True)),
        "invalid_rows": int(totals["invalid_rows"]),
        "nonfinite_values": missing,
    }
