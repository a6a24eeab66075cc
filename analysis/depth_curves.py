"""Curves over layers in many resamples of the documents, from sums that results have kept."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .bootstrap import RatioBootstrap
from .contributions import Source
from .results import open_result, result_place
from .store import Run
from .summary import Settings, document_blocks

Floats = NDArray[np.float64]
Analysis = Callable[..., xr.Dataset]


@dataclass(frozen=True, eq=False)
class Curve:
    """A mean over tokens, of all documents and of resampled ones.

    Attributes
    ----------
    mean
        (…, place) float64.
    resampled
        (resamples, …, place) float64; no resample where there are fewer than two documents.
    at
        (place,) int64: layer or point of each value.
    documents
        Documents behind the mean.
    """

    mean: Floats
    resampled: Floats
    at: NDArray[np.int64]
    documents: int


@contextmanager
def kept_documents(
    run: Run, analysis: Analysis, name: str, source: Source, settings: Settings
) -> Iterator[xr.Dataset]:
    """The sums by document that an analysis keeps, computed where they are not saved yet.

    Parameters
    ----------
    analysis, name
        ``contributions`` or ``lens``, and the name of its result.
    """
    computing = {"scheduler": settings.scheduler, "workers": settings.workers,
                 "progress": settings.progress}  # fmt: skip
    saved = result_place(run, name, None)
    with tempfile.TemporaryDirectory(prefix="depthscope-") as scratch:
        folder = Path(scratch) / "result.zarr"
        if saved is not None:
            try:
                analysis(run, source, **computing, **_bootstrap_of(saved))
                folder = saved
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                    raise
        if folder is not saved:
            analysis(run, source, out=folder, **computing)
        with xr.open_zarr(folder, group="documents", consolidated=False) as kept:
            yield kept


def _bootstrap_of(place: Path) -> dict[str, Any]:
    """How the saved result was resampled, so that it is used and not replaced."""
    if not place.is_dir():
        return {}
    try:
        parameters = open_result(place).attrs["parameters"]
        return {key: parameters[key] for key in ("resamples", "seed", "level")}
    except (OSError, ValueError, KeyError):
        return {}


def read_curve(kept: xr.Dataset, variable: str, token_set: str, settings: Settings) -> Curve:
    """The curve of a variable, such as ``cosine`` (part, layer) or ``kl`` (point).

    Memory: one value per resample and place of the curve.
    """
    sums, counts = kept[f"{variable}_sum"], kept[f"{variable}_count"]
    number = kept["token_set"].values.tolist().index(token_set)
    shape = sums.shape[2:]
    size, documents = int(np.prod(shape)), int((kept["rows"][:, number] > 0).sum())
    total, values = np.zeros(size), np.zeros(size)
    bootstrap = RatioBootstrap(documents, size, resamples=settings.resamples, seed=settings.seed)
    for block_sums, block_counts in document_blocks(kept["rows"], sums, counts, number):
        bootstrap.add(block_sums, block_counts)
        total += block_sums.sum(axis=0)
        values += block_counts.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / values
    resampled = bootstrap.ratios() if documents > 1 else np.empty((0, size))
    at = kept[sums.dims[-1]].values.astype(np.int64)
    return Curve(mean.reshape(shape), resampled.reshape(-1, *shape), at, documents)
