"""Every store below a folder, and how each stands: names and commits are read, no data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .commits import CommitLog
from .errors import Damage, RequestError
from .layout import StorePaths
from .run_record import RunRecord
from .status import status


@dataclass(frozen=True)
class FoundStore:
    """A store in one line.

    Attributes
    ----------
    path
        Its folder.
    state
        As `status` says it; ``unreadable`` where it cannot be read.
    rows_total, rows_committed
        How much there is, and how much is committed for all points.
    bytes
        Of its committed shards.
    model, points, created
        From its record.
    problem
        Why it cannot be read; empty otherwise.
    """

    path: Path
    state: str
    rows_total: int = 0
    rows_committed: int = 0
    bytes: int = 0
    model: str = ""
    points: tuple[int, ...] = ()
    created: str = ""
    problem: str = ""

    @property
    def line(self) -> str:
        """For a table."""
        if self.problem:
            return f"{self.path}  {self.state}: {self.problem}"
        rows = f"{self.rows_committed}/{self.rows_total} rows"
        size = f"{self.bytes / 1e9:.3f} GB"
        points = f"{len(self.points)} points"
        return "  ".join([str(self.path), self.state, rows, size, self.model, points, self.created])


def find_stores(
    folder: Path, is_running: Callable[[Path], bool] = lambda root: False
) -> Iterator[FoundStore]:
    """Look through a folder for stores, by name; hidden folders and folders in stores are not.

    Raises
    ------
    RequestError
        There is no such folder.
    """
    if not folder.is_dir():
        raise RequestError(f"{folder}: there is no such folder")
    for root, names, _ in os.walk(folder):
        if StorePaths(Path(root)).run.exists():
            names.clear()
            yield _found(Path(root), is_running)
        names[:] = sorted(name for name in names if not name.startswith("."))


def _found(root: Path, is_running: Callable[[Path], bool]) -> FoundStore:
    try:
        record, state = RunRecord.load(root), status(root, running=is_running(root))
        # A shard that several commits name counts once; such commits are of one task.
        size = 0
        task, seen = -1, set[str]()
        for commit in CommitLog(root).commits():
            if commit.task != task:
                task, seen = commit.task, set()
            size += sum(shard.bytes for shard in commit.shards if shard.path not in seen)
            seen.update(shard.path for shard in commit.shards)
    except (RequestError, Damage, OSError, KeyError, TypeError) as error:
        return FoundStore(root, "unreadable", problem=" ".join(str(error).split()))
    return FoundStore(
        root,
        state.state,
        state.rows_total,
        state.rows_committed,
        size,
        str(record.model.get("name", "")),
        record.points,
        record.created,
    )
