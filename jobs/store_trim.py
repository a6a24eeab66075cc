"""`depthscope store trim`: checked, locked and stopped like an extraction."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from depthscope.storage.array_names import array_paths
from depthscope.storage.arrays import ArrayPlan
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths
from depthscope.storage.trim import lay_out_trim, trim
from depthscope.storage.trim_place import recover, trim_in_place
from depthscope.storage.trim_plan import TrimPlan, plan_trim

from .lock import driver_lock
from .room import check_room
from .stopping import stop_on_signals


@dataclass(frozen=True)
class Trimmed:
    """What a trim left.

    Attributes
    ----------
    out
        The smaller store.
    bytes
        Of its arrays.
    points
        Points of the residual stream that it has.
    arrays
        Groups of arrays that it has.
    changed
        False where there was nothing to leave out.
    """

    out: Path
    bytes: int
    points: tuple[int, ...]
    arrays: tuple[str, ...]
    changed: bool

    @property
    def sentence(self) -> str:
        """One line."""
        if not self.changed:
            return f"{self.out}: there was nothing to leave out"
        points = ",".join(map(str, self.points)) or "none"
        return f"{self.out}: points {points}, {', '.join(self.arrays)}, {self.bytes / 1e9:.3f} GB"


def trim_store(
    source: Path,
    points: tuple[int, ...] | None,
    drop: Collection[str],
    out: Path | None = None,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Trimmed:
    """Cut a store down, in its place or into ``out``, or finish a trim that was interrupted.

    Raises
    ------
    RequestError
        There is no such store, it is not complete, does not hold what is to be kept, or there is no
        room.
    Damage
        A file of the store is missing or damaged; the store is as it was.
    Stopped
        A signal came; the same call resumes.
    """
    recover(source)
    plan = plan_trim(source, points, drop)
    if out is None:
        with driver_lock(source), stop_on_signals() as stop:
            size = trim_in_place(plan, on_progress=on_progress, stop=stop)
        return _result(source, plan, size)
    if out.absolute().resolve() == source.resolve():
        raise RequestError(f"--out {out} is the store itself: leave --out away to trim in place")
    parent = out.absolute().parent
    if not StorePaths(out).run.exists() and parent.is_dir():
        arrays = [ArrayPlan.read(source, path) for path in array_paths(source)]
        kept = [plan.array(array) for array in arrays if array.path not in plan.dropped]
        check_room(parent, kept, plan.record)
    lay_out_trim(out, plan)
    with driver_lock(out), stop_on_signals() as stop:
        size = trim(out, plan, on_progress=on_progress, stop=stop)
    return _result(out, plan, size)


def _result(out: Path, plan: TrimPlan, size: int) -> Trimmed:
    changed = plan.changes or out != plan.source
    return Trimmed(out, size, plan.record.points, tuple(plan.record.groups), changed)
