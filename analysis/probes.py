"""What can be read off the stream at every point by a linear probe (Concept Depth).

For every point, a linear classifier of a label: cross-validated by document, beside the same
classifier on a control task of random labels (Hewitt and Liang 2019), whose accuracy says how much
a probe learns by heart; selectivity is the difference. The classifier is a linear discriminant with
a ridge, in closed form from moments by fold (``probe_fit``), so there are two passes over the rows
for every ⌈moments ÷ budget⌉ points: one to train all folds, one to test them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import xarray as xr
from depthscope.storage.errors import RequestError

from .block_passes import counter, over_blocks
from .client import compute_on
from .geometry_rows import BLOCK_ROWS, Look
from .map_plan import SLACK, held_now
from .probe_fit import TASKS, Float32, FoldMoments, Probe, fit
from .probe_labels import Labels, find_labels
from .probe_result import Found, probe_dataset
from .probe_scores import Scores
from .probe_units import Pool, UnitReader, Units
from .products import NumpyProducts
from .results import Provenance, result_folder, result_place, reuse_result, save_dataset
from .store import Run
from .summary import Settings
from .task_progress import Seen

#: Raised whenever the numbers change for the same inputs.
REVISION = 1

Probes = tuple[tuple[tuple[Probe, Probe], ...], ...]


def probes(
    run: Run,
    label: str,
    *,
    labels: Sequence[str] | None = None,
    pool: Pool | None = None,
    folds: int = 5,
    memory: int | None = None,
    **settings: Any,
) -> xr.Dataset:
    """Accuracy of linear probes at all stored points, with a control task.

    Parameters
    ----------
    run
        From ``open``, with stored residuals; a selection by ``where`` is respected.
    label
        A column of the documents, or of the tokens (``token``, ``role``, ``special`` …).
    labels
        The values to predict; None for all that at least ``folds`` documents have.
    pool
        What is classified: ``last``, a document's last row; ``mean``, the mean of its content rows;
        ``each``, every content row by itself. None is ``last`` for a column of documents, and
        ``each``, the only choice, for one of tokens.
    folds
        Parts of the documents that are predicted in turn by probes trained on the others.
    memory
        Bytes that a process may hold; None for half of what is free.
    settings
        Fields of ``Settings``: resamples, seed, level, out, scheduler, workers, progress.

    Returns
    -------
    xarray.Dataset
        Axes label (``all``, then the classes), point: accuracy, low, high, control_accuracy,
        control_low, control_high, selectivity, selectivity_low, selectivity_high. By label: count
        (units), share_of_class, jump_point and convergence_point, each with _low, _high and _share
        (of the resamples that have one). ridge (task, fold, point). The group ``documents`` has
        correct (task, document, point) and units (document).

    Raises
    ------
    RequestError
        No residuals are stored, there is no such column, fewer than two of its values are in
        enough documents, or the memory is too little for one point.
    """
    chosen = Settings(**settings)
    residual = run.stored("residual")
    if folds < 2:
        raise RequestError(f"probes need at least two folds of documents, not {folds}")
    if not run.points or not len(residual.axis):
        raise RequestError(
            f"{run.snapshots[0].root}: probes have no rows: no point is stored, nothing is "
            "committed yet, or no row was selected"
        )
    parameters = {
        "revision": REVISION,
        "label": label,
        "labels": None if labels is None else list(labels),
        "pool": pool,
        "folds": folds,
        "resamples": chosen.resamples,
        "seed": chosen.seed,
        "level": chosen.level,
    }
    provenance = Provenance.of(run, "probes", parameters)
    place = result_place(run, "probes", chosen.out)
    found = reuse_result(place, provenance)
    if found is not None:
        return found
    columns = run.columns(residual.axis)
    known = find_labels(columns, residual.axis, label, labels, folds, chosen.seed)
    reader = UnitReader.of(run, known, _pool(pool, known))
    with compute_on(chosen.scheduler, workers=chosen.workers):
        result, documents = _compute(run, reader, folds, memory, chosen)
    result = result.assign_attrs({**result.attrs, **provenance.attributes()})
    if place is not None:
        with result_folder(place) as folder:
            save_dataset(documents, folder, "documents")
            save_dataset(result, folder)
    return result


def _pool(pool: Pool | None, labels: Labels) -> Pool:
    if pool not in (None, "last", "mean", "each"):
        raise RequestError(f"unknown pool {pool!r}; use last, mean or each")
    if labels.of_tokens and pool not in (None, "each"):
        raise RequestError(
            f"{labels.field} is a column of tokens, which are classified one by one: leave out "
            f"--pool {pool}"
        )
    return pool or ("each" if labels.of_tokens else "last")


def _compute(
    run: Run, reader: UnitReader, folds: int, memory: int | None, settings: Settings
) -> tuple[xr.Dataset, xr.Dataset]:
    points, labels = len(run.points), reader.labels
    tiles = cut_points(points, reader.hidden, folds, len(labels.classes), settings.resamples,
                       len(labels.documents), memory)  # fmt: skip
    look = Look.of(reader.rows)
    total, parts = 2 * len(tiles) * reader.blocks, []
    ridges = np.full((TASKS, folds, points), np.nan)
    for number, tile in enumerate(tiles):
        work = _Work(reader, look.mean[tile.start : tile.stop], tile, folds, settings.resamples,
                     settings.seed)  # fmt: skip
        before = 2 * number * reader.blocks
        moments = over_blocks(work.train, reader.blocks, _seen(settings, before, total))
        made = _fitted(moments, len(tile), folds)
        for at, fold in np.ndindex(len(tile), folds):
            ridges[:, fold, tile.start + at] = [probe.ridge for probe in made[at][fold]]
        del moments
        work = _Work(reader, work.mean, tile, folds, settings.resamples, settings.seed, made)
        seen = _seen(settings, before + reader.blocks, total)
        parts.append(over_blocks(work.test, reader.blocks, seen))
    return probe_dataset(Found(run, reader, parts, ridges, settings.level))


def _seen(settings: Settings, before: int, total: int) -> Seen | None:
    return None if settings.progress is None else counter(settings.progress, before, total)


def _fitted(moments: FoldMoments, points: int, folds: int) -> Probes:
    trained = moments.counts[:, 0].sum() - moments.counts[:, 0].sum(axis=1)
    if (trained < 2).any():
        raise RequestError(
            "probes have a fold with nothing to train on: take more documents or fewer --folds"
        )
    return tuple(
        tuple(fit(moments, point, fold) for fold in range(folds)) for point in range(points)
    )


def cut_points(
    points: int, hidden: int, folds: int, classes: int, resamples: int, documents: int,
    memory: int | None,
) -> list[range]:  # fmt: skip
    """The points of each pair of passes, so that their moments fit.

    Raises
    ------
    RequestError
        The memory is too little for one point.
    """
    allowed = memory or psutil.virtual_memory().available // 2
    labels = 1 + classes
    moments = 8 * folds * hidden * (hidden + TASKS * classes)
    fitted = 8 * folds * TASKS * hidden * classes
    scored = TASKS * (8 * labels * resamples + 4 * documents)
    # A block, the one read ahead, and a centred copy.
    block = 4 * BLOCK_ROWS * 3 * hidden
    solver = 8 * 8 * hidden * hidden
    one = moments + fitted + scored + block
    budget = allowed - held_now() - solver - SLACK
    size = budget // one
    if size < 1:
        raise RequestError(
            f"probes of {hidden} dimensions need at least {(allowed - budget + one) / 1e9:.1f} GB, "
            f"and {allowed / 1e9:.1f} GB are allowed: give --memory"
        )
    parts = np.array_split(np.arange(points), -(-points // size))
    return [range(part[0], part[-1] + 1) for part in parts]


@dataclass(frozen=True, eq=False)
class _Work:
    """A pass over the units: sent to the workers, which take a range of blocks each."""

    reader: UnitReader
    mean: Float32
    tile: range
    folds: int
    resamples: int
    seed: int
    probes: Probes | None = None

    def train(self, blocks: range, seen: Seen | None = None) -> FoldMoments:
        """Moments of some blocks."""
        classes = len(self.reader.labels.classes)
        moments = FoldMoments(len(self.tile), self.folds, classes, self.reader.hidden)
        products = NumpyProducts()
        for done, units in enumerate(self.reader.read(blocks, self.tile), 1):
            moments.add(units, self._fold(units), self.mean, products)
            if seen is not None:
                seen(done)
        return moments

    def test(self, blocks: range, seen: Seen | None = None) -> Scores:
        """Predictions of some blocks."""
        assert self.probes is not None
        labels = self.reader.labels
        scores = Scores(len(self.tile), len(labels.classes), labels.documents, self.resamples,
                        self.seed)  # fmt: skip
        products = NumpyProducts()
        for done, units in enumerate(self.reader.read(blocks, self.tile), 1):
            scores.add(units, self._fold(units), self.mean, self.probes, products)
            if seen is not None:
                seen(done)
        return scores

    def _fold(self, units: Units) -> Any:
        return self.reader.labels.fold[units.document]
