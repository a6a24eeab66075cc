"""The geometry of the residual stream at every point, and how points resemble each other.

For both token sets: linear CKA and mean cosine between all points, block influence 1 - cos(h_l,
h_{l+1}) (ShortGPT), angular distance over spans (Gromov et al.), linearity of each layer
(Razzhigaev et al.), effective rank, participation ratio, variance and sparsity (AVSS), massive
activations (Sun et al.) and anisotropy.

All of it comes from sums over blocks of rows that can be merged: one pass over the stored rows
where the second moments of all points fit into memory, ⌈moments ÷ budget⌉ passes otherwise. On a
Dask cluster every worker passes over its share of the rows. Where the sums are small beside the
activations they are kept with the result, and of a store that has grown only the new rows are read.
Cost per row and point: d² for the second moments, d² for linearity, n·d for CKA in blocks of n
rows, points·d for cosines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import xarray as xr
from depthscope.storage.errors import RequestError

from .block_passes import counter, over_blocks
from .cka import BLOCK_ROWS as CKA_ROWS
from .cka import LEAST_ROWS
from .client import compute_on
from .geometry_kept import KeptState, StateWriter, find_state, worth_keeping
from .geometry_result import OF_POINT, geometry_dataset, spectral
from .geometry_rows import BLOCK_ROWS, Look, RowReader
from .geometry_state import SETS, Draws, Moments, Overview
from .map_plan import SLACK, held_now
from .products import NumpyProducts
from .results import Provenance, result_folder, result_place, reuse_result, save_dataset
from .store import Run
from .summary import Settings
from .task_progress import Seen

#: Raised whenever the numbers change for the same inputs.
REVISION = 1


def geometry(
    run: Run, *, memory: int | None = None, cka_rows: int = CKA_ROWS, **settings: Any
) -> xr.Dataset:
    """Geometry of all stored points, for both token sets.

    Parameters
    ----------
    run
        From ``open``, with stored residuals; a selection by ``where`` is respected.
    memory
        Bytes that a process may hold; None for half of what is free.
    cka_rows
        Rows of a block of CKA; changes its variance, not its mean.
    settings
        Fields of ``Settings``: resamples, seed, level, out, scheduler, workers, progress.

    Returns
    -------
    xarray.Dataset
        Axes token_set, point: variance, effective_rank, participation_ratio, sparsity, avss,
        anisotropy, massive_count; with point_other: cka, _low, _high, cosine; with span:
        angular_distance, _low, _high; with rank: massive_value, _row, _position, _dimension; with
        dimension: massive_dimension_count. Axes token_set, layer: block_influence, _low, _high,
        linearity. angular_distance_last (point, span), median_magnitude (point), count
        (token_set). Linearity is NaN where there are no more rows than dimensions.

    Raises
    ------
    RequestError
        No residuals are stored, there are no rows, or the memory is too little for one point.
    """
    chosen = Settings(**settings)
    reader = _reader(run, cka_rows)
    parameters = {
        "revision": REVISION,
        "cka_rows": cka_rows,
        "resamples": chosen.resamples,
        "seed": chosen.seed,
        "level": chosen.level,
    }
    provenance = Provenance.of(run, "geometry", parameters)
    place = result_place(run, "geometry", chosen.out)
    found = reuse_result(place, provenance)
    if found is not None:
        return found
    draws = Draws(chosen.resamples, chosen.seed, cka_rows)
    with compute_on(chosen.scheduler, workers=chosen.workers), result_folder(place) as folder:
        kept = find_state(place, provenance, run)
        keep = place is not None and len(run.snapshots) == 1 and worth_keeping(reader, draws)
        dataset = _compute(run, reader, draws, memory, chosen, kept, folder if keep else None)
        dataset = dataset.assign_attrs({**dataset.attrs, **provenance.attributes()})
        if place is not None:
            save_dataset(dataset, folder)
    return dataset


def _reader(run: Run, cka_rows: int) -> RowReader:
    if cka_rows < LEAST_ROWS:
        raise RequestError(f"blocks of CKA need at least {LEAST_ROWS} rows, not {cka_rows}")
    reader = RowReader.of(run)
    if not run.points:
        raise RequestError(f"{run.snapshots[0].root} stores no points: extract with --points all")
    if not len(reader.axis):
        raise RequestError("geometry has no rows: nothing is committed yet, or no row was selected")
    return reader


def _compute(
    run: Run,
    reader: RowReader,
    draws: Draws,
    memory: int | None,
    settings: Settings,
    kept: KeptState | None = None,
    folder: Path | None = None,
) -> xr.Dataset:
    points, hidden = len(run.points), int(reader.residual.shape[-1])
    tiles = cut_points(points, hidden, draws.resamples, memory)
    if kept is None:
        look = Look.of(reader)
    else:
        look, reader = kept.look, RowReader.of(kept.rest(run))
        draws = replace(draws, before=kept.blocks)
    writer = None if folder is None else StateWriter(folder, points, hidden)
    found = {name: np.full((SETS, points), np.nan) for name in (*OF_POINT, "linearity")}
    overview: Overview | None = None
    for number, tile in enumerate(tiles):
        seen = None
        if settings.progress is not None:
            seen = counter(settings.progress, number * reader.blocks, len(tiles) * reader.blocks)
        sums = over_blocks(_Pass(reader, look, draws, tile, points, number == 0).over,
                           reader.blocks, seen)  # fmt: skip
        if kept is not None:
            kept.add_to(sums.moments, sums.overview)
        if writer is not None:
            writer.add(sums.moments)
        overview = overview or sums.overview
        for name, values in spectral(sums.moments).items():
            found[name][:, tile.start : tile.stop] = values
    assert overview is not None
    if writer is not None:
        writer.finish(run, overview, look, draws.before + reader.blocks)
    result = geometry_dataset(
        overview, found, run.points, run.layers, look.magnitude, settings.level
    )
    return result.assign_attrs(
        passes=len(tiles),
        invalid_rows=int(overview.left_out[0]),
        nonfinite_rows=int(overview.left_out[1]),
        cka_rows=draws.cka_rows,
    )


def cut_points(points: int, hidden: int, resamples: int, memory: int | None) -> list[range]:
    """The points of each pass, so that their moments fit.

    Raises
    ------
    RequestError
        The memory is too little for one point.
    """
    allowed = memory or psutil.virtual_memory().available // 2
    # A block and the one read ahead, its vectors by row, Gram matrices and resampled sums.
    block = 4 * points * BLOCK_ROWS * (3 * hidden + points)
    draws = 8 * resamples * (2 * points * points + 4 * points * points)
    budget = allowed - held_now() - block - draws - SLACK
    # Of each set, the moments of a point and those with the next; and the solver's copies.
    one = SETS * 2 * 8 * hidden * hidden
    solver = 4 * 8 * hidden * hidden
    size = (budget - solver) // one
    if size < 1:
        least = allowed - budget + one + solver
        raise RequestError(
            f"geometry of {points} points needs at least {least / 1e9:.1f} GB, and "
            f"{allowed / 1e9:.1f} GB are allowed: give --memory"
        )
    # Each pass reads one point more than it has, so equal passes read the least.
    passes = -(-points // size)
    return [range(part[0], part[-1] + 1) for part in np.array_split(np.arange(points), passes)]


@dataclass(eq=False)
class _Sums:
    """What one pass gathers; the overview belongs to the first."""

    overview: Overview | None
    moments: Moments

    def merge(self, other: _Sums) -> None:
        """Add another's sums."""
        self.moments.merge(other.moments)
        if self.overview is not None and other.overview is not None:
            self.overview.merge(other.overview)


@dataclass(frozen=True, eq=False)
class _Pass:
    """One pass over the rows: sent to the workers, which take a range of blocks each."""

    reader: RowReader
    look: Look
    draws: Draws
    tile: range
    points: int
    everything: bool

    def over(self, blocks: range, seen: Seen | None = None) -> _Sums:
        """Sums over some blocks."""
        hidden = int(self.reader.residual.shape[-1])
        moments = Moments(self.tile, self.points, hidden)
        overview = Overview(self.points, hidden, self.draws) if self.everything else None
        read = range(self.points) if self.everything else moments.read
        products = NumpyProducts()
        for block in self.reader.read(blocks, read):
            moments.add(block, self.look, read.start, products)
            if overview is not None:
                overview.add(block, self.look, products)
            if seen is not None:
                seen(block.number + 1)
        return _Sums(overview, moments)
