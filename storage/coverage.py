"""Which shards belong to which commit: one rule for whoever writes, checks or reads.

A commit covers a range of points of one task, both ends included. A point of the residual belongs
to the commit that holds this point; what the sublayers of layer l add, to the one that holds point
l+1, which layer l brings forth; statistics and lens values, which need every layer, to the one that
holds the last point. Commits of one task may overlap, since a schedule may do again what another
had begun; a shard then belongs to all of them.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .array_names import SUBLAYERS, array_paths, group_of
from .arrays import ArrayPlan
from .run_record import RunRecord
from .tasks import Selections, Task


def commit_points(plan: ArrayPlan, record: RunRecord) -> Sequence[int]:
    """The point that each shard along an array's first axis is committed with; they ascend."""
    name, layers = plan.path.rsplit("/", 1)[-1], int(record.model["layers"])
    if name == "residual":
        return record.points
    if name in SUBLAYERS:
        return range(1, layers + 1)
    return (layers,) * plan.grid[0]


def shards_of(
    plans: Iterable[ArrayPlan], record: RunRecord, task: Task, first: int, last: int
) -> set[str]:
    """The files that a commit of a task must name, and no other.

    Parameters
    ----------
    plans
        Every sharded array of the store.
    first, last
        The commit's points, both ends included.
    """
    found: set[str] = set()
    for plan in plans:
        begin, end = task.stored[group_of(plan.path)]
        if begin == end:
            # A task may own no row at all of a group that stores a selection.
            continue
        points = commit_points(plan, record)
        size = plan.shard[plan.row_axis]
        axes = [range(length) for length in plan.grid]
        axes[0] = range(bisect_left(points, first), bisect_right(points, last))
        axes[plan.row_axis] = range(begin // size, -(-end // size))
        found.update(plan.shard_file(index) for index in itertools.product(*axes))
    return found


@dataclass(frozen=True)
class Coverage:
    """What `shards_of` needs of one store, read once.

    Attributes
    ----------
    record, selections, plans
        The store's record, its tasks and its sharded arrays.
    """

    record: RunRecord
    selections: Selections
    plans: tuple[ArrayPlan, ...]

    @classmethod
    def of(cls, root: Path, record: RunRecord) -> Coverage:
        """Read a store's plan.

        Raises
        ------
        RequestError, Damage
            The metadata of an array cannot be read.
        OSError, ValueError, KeyError
            The row coordinates cannot be read.
        """
        plans = tuple(ArrayPlan.read(root, path) for path in array_paths(root))
        return cls(record, Selections(root, record), plans)

    def shards(self, task: int, first: int, last: int) -> set[str]:
        """The files that a commit of a task for these points must name, and no other."""
        return shards_of(self.plans, self.record, self.selections.task(task), first, last)
