"""What one store has committed at the moment it is opened.

Everything that is read later goes through a snapshot, so a run that is still writing cannot change
what an analysis sees half way through.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from depthscope.storage.commits import CommitLog, committed_ranges
from depthscope.storage.errors import RequestError
from depthscope.storage.run_record import RunRecord
from depthscope.storage.spans import Spans, covers
from depthscope.storage.tasks import Selections
from numpy.typing import NDArray

Ranges = tuple[tuple[int, int], ...]


class Stretch(NamedTuple):
    """Stored rows that may be read, from ``first`` to ``last`` (end excluded).

    ``committed`` holds the points that are committed of them; None where all are.
    """

    first: int
    last: int
    committed: Spans | None


@dataclass(frozen=True)
class Snapshot:
    """The committed part of a store, and its place in the corpus that is analysed.

    Attributes
    ----------
    root
        The store's folder.
    index
        Its number among the stores opened together.
    record
        Its run.json.
    row_offset, document_offset
        What is added to its rows and documents, so that several stores count as one corpus.
    tasks
        Tasks whose rows are visible, ascending: the complete ones, or every one that has
        committed anything where the store was opened partially.
    complete
        The complete ones among them.
    points
        Stored points that are shown: all of them, unless none of the visible tasks is complete;
        then those that any of them has committed.
    invalid
        Documents that failed, in the store's own numbers, ascending.
    begun
        Visible tasks that are not complete, with the points that each has committed.
    """

    root: Path
    index: int
    record: RunRecord
    row_offset: int
    document_offset: int
    tasks: tuple[int, ...]
    complete: tuple[int, ...]
    points: tuple[int, ...]
    invalid: tuple[int, ...]
    begun: Mapping[int, Spans] = field(default_factory=dict, hash=False)

    @property
    def whole(self) -> bool:
        """Whether every task is visible."""
        return len(self.tasks) == self.record.tasks

    def has_group(self, group: str) -> bool:
        """Whether the store has arrays of that group."""
        return group in self.record.groups

    def stores_all_rows(self, group: str) -> bool:
        """Whether the group stores every row of the corpus."""
        return self.record.groups[group].rows == self.record.rows

    @property
    def row_ranges(self) -> Ranges:
        """The store's own rows of visible tasks, as ranges that exclude their end."""
        size, rows = self.record.task_rows, self.record.rows
        borders = {task: (task * size, min((task + 1) * size, rows)) for task in self.tasks}
        return tuple(committed_ranges(borders, self.tasks))

    def ranges(self, group: str) -> tuple[Stretch, ...]:
        """Stored rows of a group that may be read, ascending.

        What a task that is not complete has committed of the group ``activations`` may be read
        point by point; its statistics and lens values once it has committed the last point.
        """
        last_point = int(self.record.model["layers"])
        alike: dict[Spans | None, list[int]] = {}
        for task in self.tasks:
            committed = self.begun.get(task)
            if committed is not None and group != "activations":
                if not covers(committed, last_point, last_point):
                    continue
                committed = None
            alike.setdefault(committed, []).append(task)
        found = []
        for committed, tasks in alike.items():
            borders = {task: self._selections.task(task).stored[group] for task in tasks}
            found += [Stretch(a, b, committed) for a, b in committed_ranges(borders, tasks)]
        return tuple(sorted(found, key=lambda stretch: stretch.first))

    def stored_rows(self, group: str) -> NDArray[np.int64]:
        """The store's own row numbers of every stored row of a group; eight bytes each."""
        return self._selections.stored_rows(group, 0, self.record.groups[group].rows)

    def visible(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the store's rows belong to visible tasks."""
        seen = np.zeros(self.record.tasks, dtype=np.bool_)
        seen[list(self.tasks)] = True
        return seen[rows // self.record.task_rows]

    @cached_property
    def _selections(self) -> Selections:
        return Selections(self.root, self.record)


def take_snapshot(root: Path, index: int = 0, *, partial: bool = False) -> Snapshot:
    """Look at a store's commits once.

    Raises
    ------
    RequestError
        There is no store.
    Damage
        A commit cannot be read.
    """
    record = RunRecord.load(root)
    log, layers = CommitLog(root), int(record.model["layers"])
    committed = log.spans()
    complete = tuple(task for task, spans in committed.items() if covers(spans, 0, layers))
    begun: dict[int, Spans] = {}
    if partial:
        begun = {task: spans for task, spans in committed.items() if not covers(spans, 0, layers)}
    points = tuple(record.points)
    if begun and not complete:
        points = tuple(p for p in points if any(covers(spans, p, p) for spans in begun.values()))
    invalid = sorted(
        {document for commit in log.commits() for document, _ in commit.invalid_documents}
    )
    tasks = tuple(sorted((*complete, *begun)))
    return Snapshot(root, index, record, 0, 0, tasks, complete, points, tuple(invalid), begun)


def require_one_model(snapshots: Iterable[Snapshot]) -> None:
    """Refuse stores whose numbers must not be put together.

    Raises
    ------
    RequestError
        Names the fields of the model in which two stores differ.
    """
    first, *others = snapshots
    for other in others:
        fields = _differing(first, other)
        if fields:
            raise RequestError(
                f"{first.root} and {other.root} cannot be opened together: they differ in "
                f"{', '.join(fields)}; open stores of one model"
            )


#: Fields of run.json's model that may differ: where it was found, not what it computes.
_PLACE = frozenset({"name", "folder", "parameters"})


def _differing(first: Snapshot, other: Snapshot) -> list[str]:
    a, b = first.record.model, other.record.model
    names = sorted((set(a) | set(b)) - _PLACE)
    return [
        f"{name} ({a.get(name)}, {b.get(name)})" for name in names if a.get(name) != b.get(name)
    ]
