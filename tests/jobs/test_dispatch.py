"""The dispatcher before pools that hang: back-up attempts, counted once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from depthscope.jobs import dispatch
from depthscope.jobs.dispatch import Attempt, Dispatcher, Outcome, Pool
from depthscope.storage.commits import Commit
from depthscope.storage.tasks import Task


@dataclass(eq=False)
class Try:
    """An attempt that is finished at once, unless its worker hangs."""

    task: Task
    hangs: bool

    def result(self) -> tuple[Commit, ...]:
        return (Commit(self.task.index, (0, 1), self.task.rows, ()),)


class HangingPool:
    """Worker 0 takes its first task and never answers."""

    in_flight = 1

    def __init__(self, workers: int) -> None:
        self.number, self.given = workers, list[tuple[int, int]]()

    def workers(self) -> Sequence[int]:
        return range(self.number)

    def lost(self) -> bool:
        return False

    def submit(self, worker: int, task: Task) -> Attempt:
        self.given.append((worker, task.index))
        return Try(task, hangs=worker == 0)

    def wait(self, attempts: Sequence[Attempt], seconds: float) -> Sequence[Attempt]:
        done = [a for a in attempts if isinstance(a, Try) and not a.hangs]
        if not done:
            time.sleep(0.02)
        return done

    def progress(self) -> tuple[int, dict[str, float]]:
        return 0, {}

    def close(self) -> None: ...


def run(
    pool: Pool, tasks: int, on_warning: Callable[[str], None] = lambda _: None
) -> tuple[Outcome, list[int]]:
    """Dispatch so many tasks of ten rows; which of them were committed, as they came."""
    committed: list[int] = []
    outcome = Dispatcher(
        pool,
        [Task(index, (10 * index, 10 * index + 10), {}) for index in range(tasks)],
        retries=0,
        on_commit=lambda commit: committed.append(commit.task),
        on_tick=lambda *_: None,
        on_warning=on_warning,
        on_failure=lambda *_: None,
        stop=lambda: None,
    ).run()
    return outcome, committed


def test_a_task_that_hangs_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "STRAGGLER_SECONDS", 0.2)
    pool, warnings = HangingPool(4), list[str]()
    began = time.monotonic()
    outcome, committed = run(pool, 9, warnings.append)
    assert time.monotonic() - began >= 0.2
    assert (outcome.committed, outcome.failed) == (9, {})
    assert sorted(committed) == list(range(9))
    (first,) = [task for worker, task in pool.given if worker == 0]
    again = [worker for worker, task in pool.given if task == first]
    assert len(again) == 2
    assert len(warnings) == 1


class StartingPool(HangingPool):
    """No worker is up for a second."""

    def __init__(self) -> None:
        super().__init__(1)
        self.asked, self.began = 0, time.monotonic()

    def workers(self) -> Sequence[int]:
        self.asked += 1
        return [1] if time.monotonic() - self.began > 1 else []

    def wait(self, attempts: Sequence[Attempt], seconds: float) -> Sequence[Attempt]:
        return list(attempts)


def test_nothing_spins_while_workers_start() -> None:
    pool = StartingPool()
    outcome, committed = run(pool, 1)
    assert (outcome.committed, committed) == (1, [0])
    assert pool.asked < 10
