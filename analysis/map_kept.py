"""The moments behind saved maps, kept beside the result, so that grown stores add to them.

A document keeps its part when its store grows, so training rows stay training rows, and their
moments still hold: only those of the added rows are summed. Held-out rows are read again, since the
maps that they test have changed. The moments stand as plain ``.npy`` files in the result's folder
``state``, one of (d, width + sketch) float64 for each pair of points. Centres and limits stay
those of the first run, since sums around another centre cannot be added. Where the moments are not
much smaller than the activations they save reading, they are left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from .growth import same_but_for_tasks
from .map_plan import Plan
from .map_rows import Pilot, RowMask, Side
from .results import Provenance

Float64 = NDArray[np.float64]
Rows = NDArray[np.int64]

#: Moments are kept up to this share of the bytes of the training rows that they come from.
SHARE = 0.25

#: Parameters that do not touch the moments.
_LATER = ("ridges", "rank", "resamples", "level", "least_shared")
_SIDES = ("source", "target")


@dataclass(frozen=True, eq=False)
class TrainingPairs:
    """The training pairs of two sides, by the rows of their stores.

    Attributes
    ----------
    numbers
        Numbers of the pairs, ascending.
    rows
        Rows of the source, ascending, and of the target.
    """

    numbers: Rows
    rows: tuple[Rows, Rows]

    @classmethod
    def of(cls, numbers: Rows, source: Side, target: Side) -> TrainingPairs:
        """Look the rows up."""
        found = [
            np.asarray(side.residual.axis.index, dtype=np.int64)[side.rows[numbers]]
            for side in (source, target)
        ]
        return cls(numbers, (found[0], found[1]))


@dataclass(frozen=True, eq=False)
class KeptMoments:
    """Moments of an earlier run.

    Attributes
    ----------
    folder
        Where they lie.
    rows
        Training rows that took part.
    massive, nonfinite
        Training rows that were left out, by reason.
    """

    folder: Path
    rows: int
    massive: int
    nonfinite: int

    @classmethod
    def find(cls, place: Path, provenance: Provenance) -> KeptMoments | None:
        """Those of the result saved at a place, where the stores have only grown since."""
        if not same_but_for_tasks(place, provenance, _LATER):
            return None
        folder = place / "state"
        try:
            facts = json.loads((folder / "facts.json").read_text())
        except (OSError, ValueError):
            return None
        return cls(folder, facts["rows"], facts["massive"], facts["nonfinite"])

    @property
    def pilots(self) -> tuple[Pilot, Pilot]:
        """The centres and lengths that the moments stand on."""
        found = [
            Pilot(self.load(f"{side}_pilot").astype(np.float32), self.load(f"{side}_length"))
            for side in _SIDES
        ]
        return found[0], found[1]

    def places(self, pairs: TrainingPairs) -> Rows | None:
        """Where the pairs of these moments stand among all; None where one of them is gone."""
        source, target = (self.load(f"{side}_rows") for side in _SIDES)
        at = np.searchsorted(pairs.rows[0], source)
        if len(at) and at[-1] >= len(pairs.numbers):
            return None
        same = (pairs.rows[0][at] == source) & (pairs.rows[1][at] == target)
        return at if same.all() else None

    def judge(self, mask: RowMask, numbers: Rows) -> None:
        """Mark their pairs, of those numbers, as judged as they were."""
        mask.judged[numbers] = True
        mask.kept[numbers] = self.load("kept")
        mask.massive += self.massive
        mask.nonfinite += self.nonfinite

    def load(self, name: str) -> NDArray[Any]:
        """An array by name."""
        found: NDArray[Any] = np.load(self.folder / f"{name}.npy", allow_pickle=False)
        return found


class MomentsWriter:
    """Keeps the moments of one run, pair by pair."""

    def __init__(self, folder: Path, source: Side, target: Side) -> None:
        self._folder = folder / "state"
        self._source_sum = np.zeros((len(source), source.width))
        self._target_sum = np.zeros((len(target), target.width))
        # A group of its own, so that whoever lists the result's groups knows what it is.
        zarr.create_group(self._folder, zarr_format=3)

    def save(self, name: str, values: NDArray[Any]) -> None:
        """Keep an array."""
        np.save(self._folder / f"{name}.npy", values, allow_pickle=False)

    def keep_sums(
        self, sources: range, of_sources: Float64, targets: range, of_targets: Float64
    ) -> None:
        """Keep the sums of a tile's vectors."""
        self._source_sum[sources.start : sources.stop] = of_sources
        self._target_sum[targets.start : targets.stop] = of_targets.reshape(len(targets), -1)

    def finish(
        self, pairs: TrainingPairs, pilots: tuple[Pilot, Pilot], mask: RowMask, rows: int
    ) -> None:
        """Keep what the moments were made from; held-out rows must not have been judged yet."""
        for side, pilot, own in zip(_SIDES, pilots, pairs.rows, strict=True):
            self.save(f"{side}_pilot", pilot.mean)
            self.save(f"{side}_length", pilot.length)
            self.save(f"{side}_rows", own)
        self.save("source_sum", self._source_sum)
        self.save("target_sum", self._target_sum.reshape(-1))
        self.save("kept", mask.kept[pairs.numbers])
        facts = {"rows": rows, "massive": mask.massive, "nonfinite": mask.nonfinite}
        (self._folder / "facts.json").write_text(json.dumps(facts))


@dataclass(frozen=True, eq=False)
class Keeping:
    """What is known from earlier, and where to keep what is learned now.

    Attributes
    ----------
    before
        Moments to add to; None for none.
    folder
        Where the result is written; None where it is not kept.
    """

    before: KeptMoments | None = None
    folder: Path | None = None

    def covered(self, pairs: TrainingPairs) -> tuple[KeptMoments | None, Rows]:
        """The earlier moments that still hold, and the numbers of the pairs that they cover."""
        at = None if self.before is None else self.before.places(pairs)
        if at is None:
            return None, np.empty(0, np.int64)
        return self.before, pairs.numbers[at]

    def writer(
        self, plan: Plan, pairs: TrainingPairs, sides: tuple[Side, Side]
    ) -> MomentsWriter | None:
        """Takes the moments; None where they are too large beside the activations."""
        read = len(pairs.numbers) * sum(side.row_bytes for side in sides)
        if self.folder is None or plan.moments > SHARE * read:
            return None
        return MomentsWriter(self.folder, *sides)
