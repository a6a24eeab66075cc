"""The state of a store, from its commits' names alone: cheap at any size, safe at any time."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .commits import CommitLog
from .run_record import RunRecord


@dataclass(frozen=True)
class Status:
    """What `depthscope status` and `depthscope verify` say.

    Attributes
    ----------
    state
        ``running``, ``complete``, ``incomplete`` or ``damaged``.
    rows_total, rows_committed, tasks_total, tasks_committed
        How much there is, and how much is committed.
    problems
        One line each.
    """

    state: str
    rows_total: int
    rows_committed: int
    tasks_total: int
    tasks_committed: int
    problems: list[str] = field(default_factory=list)


def task_rows(record: RunRecord, task: int) -> int:
    """Corpus rows of a task."""
    return min(record.rows, (task + 1) * record.task_rows) - task * record.task_rows


def status(root: Path, *, running: bool = False) -> Status:
    """Count what is committed.

    Parameters
    ----------
    running
        Whether a driver works on the store just now.

    Raises
    ------
    RequestError
        There is no store at ``root``.
    """
    record = RunRecord.load(root)
    done = CommitLog(root).complete_tasks(int(record.model["layers"]))
    complete = len(done) == record.tasks
    state = "complete" if complete else "running" if running else "incomplete"
    return Status(
        state, record.rows, sum(task_rows(record, task) for task in done), record.tasks, len(done)
    )
