"""The best linear map from every point of one model to every point of another, in closed form.

h_target ≈ W·h_source + b, least squares or ridge, with the ridge of each pair chosen on documents
that are neither trained nor tested on. All training rows enter through moments, so the cost is one
matrix product per row and pair, memory is bounded, and the maps are the optimum that gradient
descent approaches. Source of the question and of the metric: Csordás et al. 2025, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import xarray as xr
from numpy.typing import NDArray

from .client import Progress
from .map_choice import choose
from .map_errors import measure
from .map_inputs import MapInputs
from .map_kept import Keeping, KeptMoments, TrainingPairs
from .map_moments import SKETCH, train
from .map_plan import Plan, Spill, held_now
from .map_result import map_result
from .map_rows import PairReader
from .map_settings import MapSettings
from .products import products_on
from .results import Provenance, result_folder, reuse_result, save_dataset
from .shared_documents import TEST, TRAINING, VALIDATION
from .store import Run


def linear_maps(
    run_a: Run, run_b: Run, *, out: Path | None = None, **settings: object
) -> xr.Dataset:
    """Fit and test the maps between all pairs of points of two runs.

    Parameters
    ----------
    run_a, run_b
        Source and target, from ``open``; of one corpus, with stored residuals.
    out
        Where to save the result; it is opened again where the same maps have been saved there.
    settings
        Fields of ``MapSettings``.

    Returns
    -------
    xarray.Dataset
        Axes source_point, target_point: relative_error (mean over held-out rows of ‖y-ŷ‖/‖y‖),
        r2, both with _low and _high, ridge, baseline_mean_error, baseline_identity_error,
        baseline_shuffled_error; r2_dimension (…, dimension); best_source_point and the relative
        depths (target_point); diagonal_slope and diagonal_distance; count (held-out rows).
        Attributes say which rows took part and how often they were read.

    Raises
    ------
    RequestError
        The stores are of different corpora, no rows pair, there are too few rows or documents, or
        too little memory.
    """
    chosen = MapSettings(**settings)  # type: ignore[arg-type]
    chosen.check()
    inputs = [Provenance.of(run, "maps", {}) for run in (run_a, run_b)]
    views = [dict(one.parameters) for one in inputs]
    provenance = Provenance(
        "maps",
        (*inputs[0].inputs, *inputs[1].inputs),
        {**chosen.parameters(), "stores": [len(one.inputs) for one in inputs], "views": views},
    )
    found = reuse_result(out, provenance)
    if found is not None:
        return found
    if out is None:
        dataset, _ = _compute(run_a, run_b, chosen, Keeping())
        return dataset.assign_attrs({**dataset.attrs, **provenance.attributes()})
    with result_folder(out) as folder:
        keeping = Keeping(KeptMoments.find(out, provenance), folder)
        dataset, documents = _compute(run_a, run_b, chosen, keeping)
        dataset = dataset.assign_attrs({**dataset.attrs, **provenance.attributes()})
        save_dataset(documents, folder, "documents")
        save_dataset(dataset, folder)
    return dataset


def _compute(
    a: Run, b: Run, settings: MapSettings, keeping: Keeping
) -> tuple[xr.Dataset, xr.Dataset]:
    used = held_now()
    inputs = MapInputs.of(a, b, settings)
    source, target = inputs.sides
    parts = inputs.parts
    memory = settings.memory or psutil.virtual_memory().available // 2
    plan = Plan.of(source, target, min(SKETCH, target.width), memory, used)
    training = TrainingPairs.of(parts[TRAINING], source, target)
    before, covered = keeping.covered(training)
    pilots = inputs.pilots() if before is None else before.pilots
    reader = PairReader(source, target, inputs.mask(pilots), plan.block_rows)
    if before is not None:
        before.judge(reader.mask, covered)
    added = np.setdiff1d(parts[TRAINING], covered, assume_unique=True)
    products = products_on(settings.device)
    tick = _ticks(settings.progress, plan, (added, parts[VALIDATION], parts[TEST]))
    shape = source.width, len(target) * target.width
    with Spill(len(source), shape, len(plan.tiles) == 1, settings.scratch) as spill:
        writer = keeping.writer(plan, training, (source, target))
        trained = train(
            reader, added, pilots, plan, products, spill, settings.seed, tick, before, writer
        )
        if writer is not None:
            writer.finish(training, pilots, reader.mask, trained.rows)
        inputs.require_rows(trained.rows)
        choice = choose(reader, parts[VALIDATION], trained, settings.ridges, products, spill, tick)
        _, place = np.unique(inputs.pairs.document[parts[TEST]], return_inverse=True)
        errors = measure(
            reader, parts[TEST], place.astype(np.int32), trained, choice, settings.rank,
            products, spill, tick,
        )  # fmt: skip
    result, documents = map_result(inputs, plan, reader.mask, choice, errors)
    kept = 0 if writer is None else plan.moments
    return result.assign_attrs(training_rows_read=len(added), kept_bytes=kept), documents


def _ticks(
    progress: Progress | None, plan: Plan, parts: Sequence[NDArray[np.int64]]
) -> Callable[[int], None]:
    total = len(parts[TRAINING]) * len(plan.tiles) + len(parts[VALIDATION]) + len(parts[TEST])
    done = 0

    def tick(rows: int) -> None:
        nonlocal done
        done += rows
        if progress is not None:
            progress(done, total)

    return tick
