"""The best guesses at every point, and how the tokens that matter rank there.

At every stored point of every stored row the final norm and unembedding make logits; kept are the
ids of the five likeliest tokens and two ranks, 1 being the best: that of the token which the model
itself puts first in the end, and that of the token which follows in the text. The logits cost more
than everything that is asked of them, so this table is made once, saved as ``top_tokens``, and read
by ``onset`` and ``flips``. Cost: 2·d·V per row and point; 28 bytes.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from .blas_threads import one_blas_thread
from .client import compute_on
from .results import Provenance, result_folder, result_place, save_dataset
from .store import Run
from .summary import Settings
from .task_progress import task_progress
from .top_token_blocks import BLOCK_ROWS, CANDIDATES, TopTokenBlocks
from .translators import Translators

Ints = NDArray[np.int64]
Int32s = NDArray[np.int32]

NAME = "top_tokens"


@dataclass(frozen=True)
class TopTokens:
    """The table of a run, on disk.

    Attributes
    ----------
    path
        Its folder.
    points
        The points that it has, ascending.
    """

    path: Path
    points: tuple[int, ...]

    def read(self, rows: Ints, name: str) -> Int32s:
        """``top`` (point, row, candidate), or ``final_rank`` or ``next_rank`` (point, row).

        ``rows`` ascend. Tokens are -1 and ranks 0 where there is none.
        """
        known, array = _row_numbers(self.path), _open_array(self.path, name)
        places = np.searchsorted(known, rows)
        if not len(places):
            return np.asarray(array[:, :0])
        values = np.asarray(array[:, int(places[0]) : int(places[-1]) + 1])
        return values[:, places - places[0]]


@contextmanager
def top_tokens(
    run: Run, settings: Settings, translators: Translators | None = None
) -> Iterator[TopTokens]:
    """The table of a run: the saved one, or a new one that is saved where the store allows it.

    With translators it is that of the tuned lens, ``top_tokens_tuned``.

    Raises
    ------
    RequestError
        The store lacks residuals, their last point, or the head, or has no rows.
    """
    work = TopTokenBlocks.of(run, translators)
    name = NAME if translators is None else f"{NAME}_tuned"
    parameters = {"candidates": CANDIDATES, "points": list(run.points), **keyed(translators)}
    provenance = Provenance.of(run, name, parameters)
    place = result_place(run, name, None)
    with tempfile.TemporaryDirectory(prefix="depthscope-") as scratch:
        folder = Path(scratch) / "result.zarr"
        if place is not None:
            try:
                if not _is_saved(place, provenance):
                    _save(work, run, place, provenance, settings)
                folder = place
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                    raise
        if folder is not place:
            _save(work, run, folder, provenance, settings)
        yield TopTokens(folder, run.points)


def _save(
    work: TopTokenBlocks, run: Run, place: Path, provenance: Provenance, settings: Settings
) -> None:
    # Zarr wants chunks of one length; pieces of the axis may have made others.
    dataset = _lazily(work, run.points).assign_attrs(provenance.attributes())
    dataset = dataset.chunk({"row": BLOCK_ROWS})
    with (
        result_folder(place) as folder,
        compute_on(settings.scheduler, workers=settings.workers),
        task_progress(settings.progress),
    ):
        save_dataset(dataset, folder)


def _lazily(work: TopTokenBlocks, points: Sequence[int]) -> xr.Dataset:
    sent = dask.delayed(work, pure=False, traverse=False)
    numbers = da.from_array(np.arange(len(work.blocks)), chunks=1)
    flat = da.map_blocks(
        _compute,
        numbers[None, :, None],
        chunks=((len(points),), work.blocks, (work.width,)),
        dtype=np.int32,
        meta=np.empty((0, 0, 0), np.int32),
        work=sent,
    )
    return xr.Dataset(
        {
            "top": (
                ("point", "row", "candidate"),
                flat[:, :, :-2],
                {"long_name": "likeliest tokens, best first; -1 for none"},
            ),
            "final_rank": (
                ("point", "row"),
                flat[:, :, -2],
                {"long_name": "rank of the token that the last point puts first; 0 for none"},
            ),
            "next_rank": (
                ("point", "row"),
                flat[:, :, -1],
                {"long_name": "rank of the token that follows; 0 for none"},
            ),
        },
        {
            "point": np.array(points, dtype=np.int64),
            "row": np.asarray(work.axis.index, dtype=np.int64),
        },
    )


def keyed(translators: Translators | None) -> dict[str, str]:
    """What a lens adds to the parameters of a result."""
    return {} if translators is None else {"translators": translators.key}


def _compute(numbers: Ints, *, work: TopTokenBlocks) -> Int32s:
    if not numbers.size:
        return np.empty((0, 0, 0), np.int32)
    # Blocks run beside each other, so none of them needs threads of its own.
    with one_blas_thread():
        return work.block(int(numbers.flat[0]))


def _is_saved(place: Path, provenance: Provenance) -> bool:
    if not place.is_dir():
        return False
    try:
        attributes = zarr.open_group(place, mode="r").attrs
        return attributes.get("fingerprint") == provenance.fingerprint
    except (OSError, ValueError, KeyError):
        return False


def _stamp(path: Path) -> int:
    # A table that is made anew under the same name must not be read through an old handle.
    return (path / "zarr.json").stat().st_mtime_ns


def _open_array(path: Path, name: str) -> Any:
    return _opened(path, name, _stamp(path))


def _row_numbers(path: Path) -> Ints:
    return _read_rows(path, _stamp(path))


@lru_cache(maxsize=16)
def _opened(path: Path, name: str, stamp: int) -> Any:
    return zarr.open_array(path / name, mode="r")


@lru_cache(maxsize=4)
def _read_rows(path: Path, stamp: int) -> Ints:
    return np.asarray(zarr.open_array(path / "row", mode="r")[:])
