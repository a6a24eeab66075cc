"""What is mapped onto what: points of two runs, on the rows that pair, in three parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

from .map_rows import Pilot, RowMask, Side
from .map_settings import MapSettings
from .row_pairs import RowPairs, pair_rows
from .shared_documents import TEST, TRAINING, VALIDATION, SharedDocuments, share_documents
from .store import Run


@dataclass(frozen=True, eq=False)
class MapInputs:
    """The inputs of the maps between two runs.

    Attributes
    ----------
    runs
        Source and target.
    settings
        How maps are made.
    shared, pairs
        Documents of both runs, and the rows of these that pair.
    sides
        Points of the source and of the target, on these rows.
    parts
        Numbers of the pairs in training, validation and test, int64.
    """

    runs: tuple[Run, Run]
    settings: MapSettings
    shared: SharedDocuments
    pairs: RowPairs
    sides: tuple[Side, Side]
    parts: tuple[NDArray[np.int64], ...]

    @classmethod
    def of(cls, a: Run, b: Run, settings: MapSettings) -> MapInputs:
        """Pair the rows of two runs.

        Raises
        ------
        RequestError
            The stores are of different corpora, no rows pair, points are not stored, or there are
            too few rows or documents.
        """
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
        inputs = cls((a, b), settings, shared, pairs, (source, target), parts)
        inputs.require_rows(len(parts[TRAINING]))
        return inputs

    def require_rows(self, training: int) -> None:
        """Refuse fewer training rows than the maps need.

        Raises
        ------
        RequestError
            There are no more rows than dimensions, and no ridge may be tried.
        """
        width = self.sides[0].width
        if training <= width and max(self.settings.ridges) == 0:
            raise RequestError(
                f"{training} training rows for {width} dimensions: least squares needs more rows "
                "than dimensions; take more documents, or allow a ridge"
            )

    def pilots(self) -> tuple[Pilot, Pilot]:
        """Centres and usual norms of both sides, from some of the training rows."""
        massive = self.settings.massive or None
        source, target = (Pilot.of(side, self.parts[TRAINING], massive) for side in self.sides)
        return source, target

    def mask(self, pilots: tuple[Pilot, Pilot]) -> RowMask:
        """Which pairs take part: all, until rows beyond the limits are met."""
        massive = self.settings.massive
        source, target = (p.length * massive if massive else np.full(len(p.length), np.inf)
                          for p in pilots)  # fmt: skip
        return RowMask((source, target), np.ones(len(self.pairs), np.bool_))


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
