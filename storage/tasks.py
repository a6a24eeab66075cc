"""Tasks: which rows of which group one worker turns into committed data.

Task k owns the corpus rows [kT, (k+1)T). A group that stores every row has one shard per task. A
group that stores a selection (activations of some rows, lens values of some documents) has shards
of its own size, and a shard belongs to the task in which its first row lies; that task then runs
the few documents beyond its border which the shard still needs. So every task owns whole shards of
every group, whatever is selected, and a document that crosses a border is the only thing run twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from .array_names import GROUPS
from .run_record import GroupLayout, RunRecord

Rows = NDArray[np.int64]

#: At most this share of the rows may go through the model twice.
RUN_TWICE_LIMIT = 0.03

#: A corpus is cut into about this many tasks, so that workers share them evenly, unless shards
#: would become smaller than one chunk or larger than ``SHARD_BYTES``.
TASKS_WANTED = 16
SHARD_BYTES = 256 << 20
CHUNK_BYTES = 512 << 10

#: Documents are sorted by length inside a task, so a task of few documents would be mostly padding.
TASK_ROWS_LEAST = 8192

#: A selection's shard is at most this part of what a task is expected to select, so that few
#: documents beyond the task's border are needed to fill its last shard.
SELECTION_SHARE = 4


@dataclass(frozen=True)
class Task:
    """One task. Ranges exclude their end.

    Attributes
    ----------
    index
        Number of the task.
    rows
        Corpus rows it owns.
    stored
        Stored rows it owns in each group.
    """

    index: int
    rows: tuple[int, int]
    stored: Mapping[str, tuple[int, int]]

    @property
    def name(self) -> str:
        """For messages."""
        return f"task {self.index} (rows {self.rows[0]} to {self.rows[1] - 1})"


class Selections:
    """The stored rows of each group, and the tasks that follow from them.

    A group that stores every row costs no memory; another costs eight bytes per stored row while
    its borders are computed, and nothing after that.
    """

    def __init__(self, root: Path, record: RunRecord) -> None:
        self.root = root
        self.record = record
        self._first_shard = {name: self._shard_owners(name) for name in record.groups}

    def _shard_owners(self, name: str) -> Rows:
        """First shard of every task, and one past the last, in a group."""
        record, group = self.record, self.record.groups[name]
        tasks = np.arange(record.tasks + 1, dtype=np.int64)
        shards = -(-group.rows // group.rows_per_shard)
        if group.rows == record.rows:
            return np.minimum(tasks * (record.task_rows // group.rows_per_shard), shards)
        firsts = self.stored_rows(name, 0, group.rows)[:: group.rows_per_shard]
        return np.searchsorted(firsts, tasks * record.task_rows).astype(np.int64)

    def stored_rows(self, name: str, first: int, last: int) -> Rows:
        """Corpus rows of the stored rows ``first`` to ``last`` (end excluded) of a group."""
        if self.record.groups[name].rows == self.record.rows:
            return np.arange(first, last, dtype=np.int64)
        array = zarr.open_array(self.root / GROUPS[name] / "row", mode="r")
        return np.asarray(array[first:last], dtype=np.int64)

    def task(self, index: int) -> Task:
        """The task of that number."""
        record = self.record
        rows = (index * record.task_rows, min((index + 1) * record.task_rows, record.rows))
        stored = {
            name: (
                int(min(self._first_shard[name][index] * group.rows_per_shard, group.rows)),
                int(min(self._first_shard[name][index + 1] * group.rows_per_shard, group.rows)),
            )
            for name, group in record.groups.items()
        }
        return Task(index, rows, stored)

    def tasks(self) -> Iterator[Task]:
        """Every task, in order."""
        return (self.task(index) for index in range(self.record.tasks))


def chunk_rows(row_bytes: int, limit: int) -> int:
    """Rows of a chunk of about 512 KiB: a power of two, at most ``limit``."""
    wanted = max(1, CHUNK_BYTES // row_bytes)
    return 1 << min(wanted.bit_length() - 1, max(0, int(limit).bit_length() - 1))


def choose_task_rows(first_rows: Rows, rows: int, row_bytes: int) -> int:
    """Rows of a task when the user does not say.

    Parameters
    ----------
    first_rows
        First row of every document.
    rows
        Rows of the corpus.
    row_bytes
        Bytes of one stored row of the widest array.
    """
    chunk = chunk_rows(row_bytes, rows)
    chunk_most = max(chunk, SHARD_BYTES // row_bytes // chunk * chunk)
    wanted = min(max(-(-rows // TASKS_WANTED), TASK_ROWS_LEAST), chunk_most)
    task = max(chunk, -(-wanted // chunk) * chunk)
    while task < rows and crossing_rows(first_rows, rows, task) > RUN_TWICE_LIMIT * rows:
        task *= 2
    return task


def crossing_rows(first_rows: Rows, rows: int, task_rows: int) -> int:
    """Rows run twice because their document crosses a border between tasks."""
    borders = np.arange(task_rows, rows, task_rows, dtype=np.int64)
    starts = first_rows[np.searchsorted(first_rows, borders, side="right") - 1]
    return int((borders - starts).sum())


def selection_layout(selected: int, rows: int, task_rows: int, row_bytes: int) -> GroupLayout:
    """How a group of ``selected`` out of ``rows`` rows is cut into shards and chunks."""
    if selected == rows:
        chunk = chunk_rows(row_bytes, task_rows)
        while task_rows % chunk:
            chunk //= 2
        return GroupLayout(rows, task_rows, chunk)
    per_task = max(1, selected * task_rows // rows // SELECTION_SHARE)
    chunk = chunk_rows(row_bytes, per_task)
    return GroupLayout(selected, max(chunk, per_task // chunk * chunk), chunk)
