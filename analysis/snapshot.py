"""What one store has committed at the moment it is opened.

Everything that is read later goes through a snapshot, so a run that is still writing cannot change
what an analysis sees half way through.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from depthscope.storage.commits import CommitLog, committed_ranges
from depthscope.storage.errors import RequestError
from depthscope.storage.run_record import RunRecord
from depthscope.storage.tasks import Selections
from numpy.typing import NDArray

Ranges = tuple[tuple[int, int], ...]


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
        Stored points that every visible task has committed.
    invalid
        Documents that failed, in the store's own numbers, ascending.
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

    def ranges(self, group: str, *, partial: bool = False) -> Ranges:
        """Stored rows of a group in committed shards, as ranges that exclude their end.

        Parameters
        ----------
        group
            A name of run.json's groups.
        partial
            Whether the shards of visible but incomplete tasks count: only residuals are committed
            point by point, so only they may be read from such tasks.
        """
        selections = self._selections
        tasks = self.tasks if partial else self.complete
        borders = {task: selections.task(task).stored[group] for task in tasks}
        return tuple(committed_ranges(borders, tasks))

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
    log = CommitLog(root)
    layers = int(record.model["layers"])
    complete = tuple(log.complete_tasks(layers))
    tasks, points = complete, tuple(record.points)
    if partial:
        spans = _committed_points(log)
        tasks = tuple(sorted(spans))
        points = tuple(
            point
            for point in record.points
            if all(any(a <= point <= b for a, b in spans[task]) for task in tasks)
        )
    invalid = sorted(
        {document for commit in log.commits() for document, _ in commit.invalid_documents}
    )
    return Snapshot(root, index, record, 0, 0, tasks, complete, points, tuple(invalid))


def _committed_points(log: CommitLog) -> dict[int, list[tuple[int, int]]]:
    spans: dict[int, list[tuple[int, int]]] = {}
    for path in log.files():
        first, last = (int(part) for part in path.stem.split("-"))
        spans.setdefault(int(path.parent.name), []).append((first, last))
    return spans


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
