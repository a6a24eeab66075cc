"""The sums behind a run's geometry, kept beside the result, so that a grown store adds to them.

They stand as plain ``.npy`` files in the result's folder ``state``. The centre and the usual
magnitude of the vectors stay those of the first run, since sums around another centre cannot be
added. Where the sums are not much smaller than the activations they save reading, they are left
out, and a grown store is read whole again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import zarr
from depthscope.storage.layout import StorePaths
from numpy.typing import NDArray

from .geometry_rows import Look, RowReader
from .geometry_state import SETS, Draws, Moments, Overview
from .growth import same_but_for_tasks
from .massive import Massive
from .results import Provenance
from .snapshot import Snapshot
from .store import Run

#: Sums are kept up to this share of the bytes of the activations that they come from.
SHARE = 0.25

_SUMS = ("cosine", "angle_sum", "angle_last", "compared", "compared_last", "direction", "directed",
         "near_zero", "rows", "left_out")  # fmt: skip
_MASSIVE = ("value", "row", "position", "dimension", "count", "dimensions")


@dataclass(frozen=True, eq=False)
class KeptState:
    """Sums of an earlier run.

    Attributes
    ----------
    folder
        Where they lie.
    tasks
        The tasks whose rows they cover.
    blocks
        Blocks of rows that they were drawn from.
    """

    folder: Path
    tasks: tuple[int, ...]
    blocks: int

    @property
    def look(self) -> Look:
        """The centre and magnitudes that the sums stand on."""
        return Look(self._load("look_mean"), self._load("look_magnitude"))

    def rest(self, run: Run) -> Run:
        """The run, showing only rows that the sums do not cover."""
        (snapshot,) = run.snapshots
        added = tuple(task for task in snapshot.tasks if task not in self.tasks)
        if snapshot.stores_all_rows("activations"):
            return Run((replace(snapshot, tasks=added, complete=added),))
        # A shard of a selection may hold rows of the task after its own.
        before = Run((replace(snapshot, tasks=self.tasks, complete=self.tasks),))
        shown, covered = (one.axis("activations").index.to_numpy() for one in (run, before))
        return run.at(np.setdiff1d(shown, covered, assume_unique=True))

    def add_to(self, moments: Moments, overview: Overview | None) -> None:
        """Add the kept sums to those of the other rows, one array at a time."""
        for point in moments.points:
            moments.gram[point] += self._load(f"gram_{point}")
            if point in moments.cross:
                moments.cross[point] += self._load(f"cross_{point}")
        read = slice(moments.read.start, moments.read.stop)
        moments.sum[:, read] += self._load("sum")[:, read]
        moments.square[:, read] += self._load("square")[:, read]
        moments.rows = moments.rows + self._load("moment_rows")
        if overview is None:
            return
        for name, array in _arrays(overview).items():
            array += self._load(name)
        for number in range(SETS):
            overview.cka[number].rows += int(self._load(f"cka_{number}_rows"))
            fields = {name: self._load(f"massive_{number}_{name}") for name in _MASSIVE}
            overview.massive[number].merge(Massive(**fields))

    def _load(self, name: str) -> NDArray[Any]:
        found: NDArray[Any] = np.load(self.folder / f"{name}.npy", allow_pickle=False)
        return found


def find_state(place: Path | None, provenance: Provenance, run: Run) -> KeptState | None:
    """The sums kept with the result saved at a place, where the store has only grown since."""
    if place is None or run.selected is not None or len(run.snapshots) > 1:
        return None
    if not same_but_for_tasks(place, provenance, ()):
        return None
    try:
        facts = json.loads((place / "state" / "facts.json").read_text())
    except (OSError, ValueError):
        return None
    (snapshot,) = run.snapshots
    tasks = tuple(facts["tasks"])
    failed = set(snapshot.invalid) - set(facts["invalid"])
    if set(tasks) - set(snapshot.tasks) or set(facts["invalid"]) - set(snapshot.invalid):
        return None
    if failed and _touch(snapshot, failed, set(tasks)):
        return None
    return KeptState(place / "state", tasks, int(facts["blocks"]))


def worth_keeping(reader: RowReader, draws: Draws) -> bool:
    """Whether the sums are small beside the activations they come from."""
    points, _, hidden = reader.residual.shape
    moments = 2 * SETS * points * hidden * hidden
    drawn = draws.resamples * SETS * (2 * points * points + 4 * points)
    read = len(reader.axis) * points * hidden * reader.residual.dtype.itemsize
    return 8 * (moments + drawn) <= SHARE * read


class StateWriter:
    """Keeps the sums of one run, tile by tile."""

    def __init__(self, folder: Path, points: int, hidden: int) -> None:
        self._folder = folder / "state"
        # A group of its own, so that whoever lists the result's groups knows what it is.
        zarr.create_group(self._folder, zarr_format=3)
        self._sum, self._square = np.zeros((SETS, points, hidden)), np.zeros((SETS, points))

    def add(self, moments: Moments) -> None:
        """Keep the moments of a tile."""
        for name, products in (("gram", moments.gram), ("cross", moments.cross)):
            for point, values in products.items():
                self._save(f"{name}_{point}", values)
        own = slice(moments.points.start, moments.points.stop)
        self._sum[:, own], self._square[:, own] = moments.sum[:, own], moments.square[:, own]
        self._save("moment_rows", moments.rows)

    def finish(self, run: Run, overview: Overview, look: Look, blocks: int) -> None:
        """Keep the rest, and what it was made from."""
        kept = {**_arrays(overview), "sum": self._sum, "square": self._square,
                "look_mean": look.mean, "look_magnitude": look.magnitude}  # fmt: skip
        for number in range(SETS):
            kept[f"cka_{number}_rows"] = np.array(overview.cka[number].rows)
            for name in _MASSIVE:
                kept[f"massive_{number}_{name}"] = getattr(overview.massive[number], name)
        for name, values in kept.items():
            self._save(name, values)
        (snapshot,) = run.snapshots
        facts = {"tasks": snapshot.tasks, "invalid": snapshot.invalid, "blocks": blocks}
        (self._folder / "facts.json").write_text(json.dumps(facts))

    def _save(self, name: str, values: NDArray[Any]) -> None:
        np.save(self._folder / f"{name}.npy", values, allow_pickle=False)


def _arrays(overview: Overview) -> dict[str, NDArray[Any]]:
    """The arrays of an overview that can be added, by name."""
    found = {name: getattr(overview, name) for name in _SUMS}
    for number in range(SETS):
        found[f"cka_{number}"] = overview.cka[number].total
        for name in ("angle", "influence", "cka_draws"):
            draws = getattr(overview, name)[number]
            found[f"{name}_{number}_sums"] = draws.sums
            found[f"{name}_{number}_counts"] = draws.counts
    return found


def _touch(snapshot: Snapshot, documents: set[int], tasks: set[int]) -> bool:
    """Whether any of these documents has rows in one of these tasks."""
    names = ["first_row", "n_tokens"]
    table = pq.read_table(StorePaths(snapshot.root).documents, columns=names)
    first, count = (np.asarray(table.column(name).to_numpy()) for name in names)
    size = snapshot.record.task_rows
    return any(
        task in tasks
        for number in documents
        for task in range(first[number] // size, (first[number] + count[number] - 1) // size + 1)
    )
