"""The best linear map from every point of one model to every point of another, in closed form.

h_target ≈ W·h_source + b, least squares or ridge, with the ridge of each pair chosen on documents
that are neither trained nor tested on. All training rows enter through moments, so the cost is one
matrix product per row and pair, memory is bounded, and the maps are the optimum that gradient
descent approaches. Source of the question and of the metric: Csordás et al. 2025, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import xarray as xr
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

from .client import Progress
from .map_choice import RIDGES, choose
from .map_errors import measure
from .map_moments import SKETCH, train
from .map_plan import Plan, Spill, held_now
from .map_result import Finished, map_result
from .map_rows import PairReader, Pilot, RowMask, Side
from .products import products_on
from .results import Provenance, result_folder, reuse_result, save_dataset
from .row_pairs import Pairing, RowPairs, TokenSet, pair_rows
from .shared_documents import TEST, TRAINING, VALIDATION, SharedDocuments, share_documents
from .store import Run

#: Raised whenever the numbers change for the same inputs.
REVISION = 1


@dataclass(frozen=True)
class MapSettings:
    """How maps are made.

    Attributes
    ----------
    source_points, target_points
        Points that take part; None for all that are stored.
    token_set
        ``content`` leaves out first positions and special tokens, ``all`` keeps them.
    massive
        Rows whose norm at any point exceeds so many times that point's median are left out; 0
        keeps them.
    ridges
        What is tried for each pair, as multiples of the mean eigenvalue of XᵀX (the sum over
        training rows, centred); 0 is least squares.
    rank
        Maps of at most that rank; None for any.
    validation, test
        Shares of the documents.
    pairing
        ``tokens``, ``offsets``, or ``auto`` by the tokenizers.
    least_shared
        Share of the smaller store's documents that must be in both.
    seed
        Of the parts, the shuffled baseline and the bootstrap.
    resamples, level
        Of the bootstrap over held-out documents.
    memory
        Bytes that the process may hold; None for half of what is free.
    device
        None for numpy; ``cpu``, ``cuda`` … for torch.
    scratch
        Folder for moments that do not fit; None for the system's.
    progress
        Called with the rows read and the rows to read, over all passes.
    """

    source_points: Sequence[int] | None = None
    target_points: Sequence[int] | None = None
    token_set: TokenSet = "content"
    massive: float = 20.0
    ridges: Sequence[float] = RIDGES
    rank: int | None = None
    validation: float = 0.1
    test: float = 0.1
    pairing: Pairing = "auto"
    least_shared: float = 0.5
    seed: int = 0
    resamples: int = 1000
    level: float = 0.95
    memory: int | None = None
    device: str | None = None
    scratch: Path | None = None
    progress: Progress | None = field(default=None, compare=False)

    def parameters(self) -> dict[str, object]:
        """Everything that decides the numbers."""
        left_out = {"memory", "device", "scratch", "progress"}
        values = {n: getattr(self, n) for n in self.__dataclass_fields__ if n not in left_out}
        lists = {n: list(v) if isinstance(v, list | tuple) else v for n, v in values.items()}
        return {**lists, "revision": REVISION}

    def check(self) -> None:
        """Refuse what cannot be.

        Raises
        ------
        RequestError
            A value is out of range.
        """
        if not self.ridges or min(self.ridges) < 0:
            raise RequestError("ridges must be at least one number that is not negative")
        if self.validation <= 0 or self.test <= 0 or self.validation + self.test >= 1:
            raise RequestError(
                f"validation {self.validation:g} and test {self.test:g} must be positive and leave "
                "documents to train on"
            )
        if self.rank is not None and self.rank < 1:
            raise RequestError(f"rank {self.rank} must be at least 1")
        if self.massive < 0:
            raise RequestError(f"massive {self.massive:g} must not be negative; 0 keeps all rows")


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
    dataset, documents = _compute(run_a, run_b, chosen)
    dataset = dataset.assign_attrs({**dataset.attrs, **provenance.attributes()})
    if out is not None:
        with result_folder(out) as folder:
            save_dataset(documents, folder, "documents")
            save_dataset(dataset, folder)
    return dataset


def _compute(a: Run, b: Run, settings: MapSettings) -> tuple[xr.Dataset, xr.Dataset]:
    used = held_now()
    names = str(a.snapshots[0].root), str(b.snapshots[0].root)
    for run, name in zip((a, b), names, strict=True):
        if not len(run.stored("residual").axis):
            raise RequestError(
                f"{name}: maps have no rows: nothing is committed yet, or no row was selected"
            )
    shared = share_documents(a, b)
    shared.require(settings.least_shared, names)
    pairs = pair_rows(a, b, shared, settings.token_set, settings.pairing)
    source = _side(a, settings.source_points, pairs.source)
    target = _side(b, settings.target_points, pairs.target)
    parts = _parts(shared, pairs, settings)
    _require_rows(parts[TRAINING], source.width, settings.ridges)
    massive = settings.massive or None
    pilots = tuple(Pilot.of(side, parts[TRAINING], massive) for side in (source, target))
    limits = tuple(p.length * massive if massive else np.full(len(p.length), np.inf)
                   for p in pilots)  # fmt: skip
    products = products_on(settings.device)
    memory = settings.memory or psutil.virtual_memory().available // 2
    plan = Plan.of(source, target, min(SKETCH, target.width), memory, used)
    mask = RowMask((limits[0], limits[1]), np.ones(len(pairs), np.bool_))
    reader = PairReader(source, target, mask, plan.block_rows)
    tick = _ticks(settings.progress, plan, parts)
    shape = source.width, len(target) * target.width
    with Spill(len(source), shape, len(plan.tiles) == 1, settings.scratch) as spill:
        trained = train(
            reader, parts[TRAINING], (pilots[0], pilots[1]), plan, products, spill,
            settings.seed, tick,
        )  # fmt: skip
        _require_rows(parts[TRAINING][: trained.rows], source.width, settings.ridges)
        choice = choose(reader, parts[VALIDATION], trained, settings.ridges, products, spill, tick)
        numbers, place = np.unique(pairs.document[parts[TEST]], return_inverse=True)
        errors = measure(
            reader, parts[TEST], place.astype(np.int32), trained, choice, settings.rank,
            products, spill, tick,
        )  # fmt: skip
    finished = Finished(
        a, b, settings.level, settings.resamples, settings.seed, settings.rank, settings.massive
    )
    return map_result(
        finished, (source, target), shared, pairs, parts, plan, mask, choice, errors,
        shared.source[numbers],
    )  # fmt: skip


def _side(run: Run, points: Sequence[int] | None, rows: NDArray[np.int64]) -> Side:
    chosen = tuple(run.points if points is None else sorted(set(points)))
    unknown = [point for point in chosen if point not in run.points]
    if unknown or not chosen:
        stored = ", ".join(map(str, run.points)) or "none"
        which = f"point {unknown[0]} is not stored" if unknown else "no point is stored"
        raise RequestError(f"{run.snapshots[0].root}: {which}; stored points: {stored}")
    at = tuple(run.points.index(point) for point in chosen)
    return Side(run.stored("residual"), chosen, at, rows)


def _parts(
    shared: SharedDocuments, pairs: RowPairs, settings: MapSettings
) -> tuple[NDArray[np.int64], ...]:
    """Numbers of the pairs in training, validation and test."""
    of_document = shared.parts(settings.validation, settings.test, settings.seed)
    found = tuple(
        np.flatnonzero(of_document[pairs.document] == part) for part in (TRAINING, VALIDATION, TEST)
    )
    for name, rows in zip(("train", "choose the ridge", "test"), found, strict=True):
        if not len(rows):
            raise RequestError(
                f"no paired rows are left to {name} on: take more documents, or other shares of "
                "--validation and --test"
            )
    return found


def _require_rows(training: NDArray[np.int64], width: int, ridges: Sequence[float]) -> None:
    if len(training) <= width and max(ridges) == 0:
        raise RequestError(
            f"{len(training)} training rows for {width} dimensions: least squares needs more rows "
            "than dimensions; take more documents, or allow a ridge"
        )


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
