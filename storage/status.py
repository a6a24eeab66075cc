"""The state of a store, from its commits' names alone: cheap at any size, safe at any time."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .check_effects import EffectsStatus, effects_status
from .commits import CommitLog
from .run_record import RunRecord
from .spans import covers


@dataclass(frozen=True)
class Status:
    """What `depthscope status` and `depthscope verify` say.

    Attributes
    ----------
    state
        ``running``, ``complete``, ``incomplete`` or ``damaged``.
    rows_total, rows_committed, tasks_total, tasks_committed
        How much there is, and how much is committed for all points.
    tasks_begun
        Tasks that have committed some points, but not all.
    share_committed
        Share of all rows' points that is committed, 0 to 1; counts what has begun.
    problems
        One line each.
    effects
        How far every intervention sweep has come, by name; the state is that of the extraction.
    """

    state: str
    rows_total: int
    rows_committed: int
    tasks_total: int
    tasks_committed: int
    tasks_begun: int
    share_committed: float
    problems: list[str] = field(default_factory=list)
    effects: dict[str, EffectsStatus] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """State and counts in one line."""
        begun = f", {self.tasks_begun} begun ({self.share_committed:.0%} of all points)"
        open_effects = "".join(
            f"; effects {name}: {one.tasks_committed} of {one.tasks_total} tasks committed"
            for name, one in self.effects.items()
            if one.tasks_committed < one.tasks_total
        )
        return (
            f"{self.state}, {self.rows_committed} of {self.rows_total} rows, "
            f"{self.tasks_committed} of {self.tasks_total} tasks committed"
            f"{begun if self.tasks_begun else ''}{open_effects}"
        )


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
    layers = int(record.model["layers"])
    spans = CommitLog(root).spans()
    done = [task for task, of_task in spans.items() if covers(of_task, 0, layers)]
    points = sum(
        task_rows(record, task) * (last - first + 1)
        for task, of_task in spans.items()
        for first, last in of_task
    )
    complete = len(done) == record.tasks
    return Status(
        state="complete" if complete else "running" if running else "incomplete",
        rows_total=record.rows,
        rows_committed=sum(task_rows(record, task) for task in done),
        tasks_total=record.tasks,
        tasks_committed=len(done),
        tasks_begun=len(spans) - len(done),
        share_committed=points / (record.rows * (layers + 1)),
        effects=effects_status(root),
    )
