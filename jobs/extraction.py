"""`depthscope extract`: lay the store out, run the tasks that are open, finish the store."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from depthscope.pipeline.carried import CarriedFiles
from depthscope.pipeline.equipment import WorkerSettings
from depthscope.pipeline.hardware import hardware
from depthscope.storage.commits import Commit, CommitLog, invalid_documents
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths
from depthscope.storage.run_record import RunRecord
from depthscope.storage.status import task_rows
from depthscope.storage.tables import mark_invalid
from depthscope.storage.tasks import Selections, Task

from .dispatch import Dispatcher, Outcome
from .engines import PoolFactory, check_engine, make_pool
from .lock import driver_lock
from .offloading import offload_warning
from .prepare import prepare
from .progress import Progress, Silent
from .schedule import Layout, lay_over_devices, threads_of
from .spec import ExtractSpec
from .stopping import stop_on_signals
from .task_choice import chosen_tasks


@dataclass(frozen=True)
class Extraction:
    """What an extraction did.

    Attributes
    ----------
    root
        The store.
    rows, tasks
        Rows of the store, and its tasks.
    committed
        Tasks that this run committed; the others were there before.
    nonfinite
        Values that are not finite, in this run's tasks.
    invalid_documents
        Documents that failed and are kept as invalid rows.
    missing
        Tasks that are not committed, since ``--tasks`` left them out.
    """

    root: Path
    rows: int
    tasks: int
    committed: int
    nonfinite: int
    invalid_documents: int
    missing: int = 0


def extract(
    spec: ExtractSpec, *, progress: Progress | None = None, pool: PoolFactory | None = None
) -> Extraction:
    """Run the extraction, or what is left of it.

    Raises
    ------
    RequestError
        The request is wrong; the store is untouched.
    WorkFailed
        Some tasks failed for good; everything else is committed.
    Stopped
        A signal ended the run; the same command resumes it.
    """
    progress = progress or Silent()
    check_engine(spec)
    existed = StorePaths(spec.out).run.exists()
    record, folder = prepare(spec, progress.message)
    with driver_lock(spec.out), stop_on_signals() as stop:
        log = CommitLog(spec.out)
        log.drop_partial()
        done = set(log.complete_tasks(int(record.model["layers"])))
        for task in done:
            CarriedFiles(spec.out, task).clear()
        counts = {"nonfinite": 0}
        outcome = Outcome()
        with _leaving_no_trace(spec.out, existed):
            chosen = chosen_tasks(spec.tasks, record.tasks)
            wanted = [task for task in chosen if task not in done]
            if wanted:
                layout = lay_over_devices(spec, record, folder, len(wanted))
                if warning := offload_warning(spec, record, layout):
                    progress.message(warning)
                settings = _settings(spec, layout, folder, log)
                outcome = _run(
                    spec, record, settings, wanted, progress, counts, stop, pool or make_pool
                )
        failed_documents = invalid_documents(spec.out)
        outcome.require_all(len(chosen))
        mark_invalid(spec.out, failed_documents)
        missing = record.tasks - len(done) - len(wanted)
        if not missing:
            # Another schedule may have finished what a sweep had begun.
            shutil.rmtree(StorePaths(spec.out).carried, ignore_errors=True)
    return Extraction(
        spec.out,
        record.rows,
        record.tasks,
        outcome.committed,
        counts["nonfinite"],
        len(failed_documents),
        missing,
    )


@contextmanager
def _leaving_no_trace(out: Path, existed: bool) -> Iterator[None]:
    """Remove a store that this run made when only now anyone could tell that it cannot be.

    Such as from the model's first batch.
    """
    try:
        yield
    except RequestError:
        if not existed and not any(CommitLog(out).files()):
            shutil.rmtree(out)
        raise


def _run(
    spec: ExtractSpec,
    record: RunRecord,
    settings: WorkerSettings,
    wanted: Sequence[int],
    progress: Progress,
    counts: dict[str, int],
    stop: Callable[[], str | None],
    pool: PoolFactory,
) -> Outcome:
    selections = Selections(spec.out, record)
    rows = record.rows
    if spec.tasks is not None:
        rows = sum(task_rows(record, task) for task in chosen_tasks(spec.tasks, record.tasks))
    progress.start(rows, rows - sum(task_rows(record, task) for task in wanted))
    workers = pool(settings, spec)

    def committed(commit: Commit) -> None:
        counts["nonfinite"] += sum(commit.nonfinite.values())
        for place, number in commit.nonfinite.items():
            progress.message(f"task {commit.task}: {number} values are not finite at {place}")

    def failed(task: Task, number: int, error: str) -> None:
        line = {"task": task.index, "try": number, "error": error, "time": time.time()}
        with StorePaths(spec.out).failures.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    try:
        return Dispatcher(
            workers,
            (selections.task(task) for task in wanted),
            retries=spec.retries,
            on_commit=committed,
            on_tick=progress.tick,
            on_warning=progress.message,
            on_failure=failed,
            stop=stop,
        ).run()
    finally:
        workers.close()
        progress.close()


def _settings(spec: ExtractSpec, layout: Layout, folder: Path, log: CommitLog) -> WorkerSettings:
    earlier = next(log.commits(), None)
    recorded = int(earlier.hardware.get("threads", 0)) if earlier else 0
    threads = spec.threads or recorded or threads_of(spec, layout.stages or 1)
    if earlier is not None and not spec.allow_mixed_hardware:
        _check_hardware(dict(earlier.hardware), hardware(threads), spec.address)
    return WorkerSettings(
        root=Path(os.path.abspath(spec.out)),
        folder=Path(os.path.abspath(folder)),
        threads=threads,
        on_error=spec.on_error,
        allow_nonfinite=spec.allow_nonfinite,
        schedule=layout.schedule,
        memory=spec.memory,
        device_memory=spec.device_memory,
        tasks_at_once=layout.tasks_at_once,
        residual=layout.residual,
        expert_memory=layout.expert_memory,
        stages=layout.stages or 1,
        offload_folder=spec.offload_folder,
        trust_remote_code=spec.trust_remote_code,
    )


def _check_hardware(
    earlier: dict[str, object], now: dict[str, object], address: str | None
) -> None:
    """Refuse to mix kinds of hardware; on a cluster, only the workers know their device."""
    known = [k for k in earlier if not (address and k in ("device", "threads", "capability"))]
    if differing := [f"{k} {earlier[k]} → {now.get(k)}" for k in known if earlier[k] != now.get(k)]:
        raise RequestError(
            f"the store was begun on other hardware ({', '.join(differing)}), which changes last "
            "bits: use the same, or give --allow-mixed-hardware"
        )
