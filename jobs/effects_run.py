"""`depthscope intervene`: lay a sweep of interventions out, run its open tasks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from depthscope.pipeline.costs import ModelCosts, model_costs
from depthscope.pipeline.description import describe_model, load_config
from depthscope.pipeline.equipment import WorkerSettings
from depthscope.storage.commits import CommitLog
from depthscope.storage.effects import EffectsRecord, effects_log
from depthscope.storage.effects_arrays import lay_out_effects
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths
from depthscope.storage.run_record import RunRecord, differences

from .corpus_means import save_means, save_stream_means
from .dispatch import Dispatcher, Pool
from .effects_plan import Budget, describe, plan_effects
from .effects_schedule import EffectsLayout, effects_budget, lay_out_layers
from .effects_sources import check_sources
from .engines import make_pool
from .intervene_spec import InterveneSpec
from .lock import driver_lock
from .progress import Progress, Silent
from .schedule import threads_of
from .stopping import stop_on_signals

PoolFactory = Callable[[WorkerSettings, InterveneSpec], Pool]


@dataclass(frozen=True)
class Intervened:
    """What a sweep did.

    Attributes
    ----------
    path
        The effects' Zarr group.
    documents, splits, splits_outside
        How many were measured, and splits that lie outside their document.
    tasks, committed
        Tasks of the sweep, and those that this run committed.
    """

    path: Path
    documents: int
    splits: int
    splits_outside: int
    tasks: int
    committed: int


def intervene(
    root: Path,
    spec: InterveneSpec,
    *,
    progress: Progress | None = None,
    pool: PoolFactory | None = None,
) -> Intervened:
    """Run a sweep of interventions, or what is left of it.

    Raises
    ------
    RequestError
        The request is wrong, or another sweep has that name; nothing is written.
    WorkFailed
        Tasks failed for good; the others are committed.
    Stopped
        A signal ended the run; the same command resumes it.
    """
    progress = progress or Silent()
    run = RunRecord.load(root)
    folder = Path(str(run.model["folder"]))
    costs = _model_costs(run, folder, spec)
    layout = lay_out_layers(spec, costs)
    if layout.schedule == "staged":
        spec = spec.model_copy(update={"stages": layout.stages})
    budget = effects_budget(spec, layout, costs, run)
    planned = plan_effects(root, spec, run, costs, budget)
    check_sources(root, spec, run)
    with driver_lock(root), stop_on_signals() as stop:
        CommitLog(root).drop_partial()
        record = _settled(root, planned, spec)
        done = set(effects_log(root, record.name).complete_tasks(record.layers))
        committed = 0
        if len(done) < record.tasks:
            settings = _settings(root, folder, spec, record, layout, budget, costs)
            committed = _run(record, settings, spec, done, progress, stop, pool or make_pool)
    return Intervened(
        StorePaths(root).effects(record.name), **describe(record), committed=committed
    )


def _run(
    record: EffectsRecord,
    settings: WorkerSettings,
    spec: InterveneSpec,
    done: set[int],
    progress: Progress,
    stop: Callable[[], str | None],
    pool: PoolFactory,
) -> int:
    progress.start(len(record.documents), 0)
    workers = pool(settings, spec)
    try:
        outcome = Dispatcher(
            workers,
            (record.task(index).plain for index in range(record.tasks) if index not in done),
            retries=spec.retries,
            on_commit=lambda commit: None,
            on_tick=progress.tick,
            on_warning=progress.message,
            on_failure=lambda task, number, error: None,
            stop=stop,
        ).run()
    finally:
        workers.close()
        progress.close()
    outcome.require_all(record.tasks)
    return outcome.committed


def _model_costs(run: RunRecord, folder: Path, spec: InterveneSpec) -> ModelCosts:
    if not (folder / "config.json").exists():
        raise RequestError(
            f"the model's folder {folder} is gone: put it back, or extract again with --model"
        )
    found = describe_model(
        folder,
        str(run.model["dtype"]),
        str(run.model["attention"]),
        trust_remote_code=spec.trust_remote_code,
    )
    if found.weights_digest != run.model["weights_digest"]:
        raise RequestError(f"the weights in {folder} are not those that the store was made with")
    config = load_config(folder, spec.trust_remote_code)
    return model_costs(config, found.dtype, attention=found.attention)


def _settled(root: Path, planned: EffectsRecord, spec: InterveneSpec) -> EffectsRecord:
    """The sweep that exists under that name, if it is this one; else the new one, laid out."""
    path = EffectsRecord.path(root, planned.name)
    if not path.exists():
        if not any(effects_log(root, planned.name).files()):
            # Laying out that was killed leaves arrays of another cut, maybe, and no record.
            shutil.rmtree(StorePaths(root).effects(planned.name), ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        means = StorePaths(root).effects(planned.name).with_suffix(".means.safetensors")
        if spec.what == "erase":
            save_stream_means(root, means)
        if spec.what == "mean":
            save_means(root, means)
        lay_out_effects(root, planned)
        planned.save(root)
        return planned
    existing = EffectsRecord.load(root, planned.name)
    if differing := differences(existing.identity_fields, planned.identity_fields):
        raise RequestError(
            f"effects {planned.name!r} are another sweep; different are: {'; '.join(differing)}. "
            "Choose another --name, or give the same values"
        )
    return existing


def _settings(
    root: Path,
    folder: Path,
    spec: InterveneSpec,
    record: EffectsRecord,
    layout: EffectsLayout,
    budget: Budget,
    costs: ModelCosts,
) -> WorkerSettings:
    at_once = 1
    if layout.schedule == "sweep":
        longest = max(len(record.split_positions[0]), 1)
        lines = (longest + 1) * len(record.parts) * record.layers * record.documents_per_task
        rows = int(record.identity_fields["batch_tokens"])
        per_task = 2 * max(lines, 1) * costs.point_bytes() * rows // max(lines, 1)
        at_once = max(1, (budget.memory - budget.weights) // max(1, 2 * per_task))
    return WorkerSettings(
        root=Path(os.path.abspath(root)),
        folder=Path(os.path.abspath(folder)),
        threads=threads_of(spec, layout.stages),
        schedule=layout.schedule,
        effects=record.name,
        memory=spec.memory,
        device_memory=spec.device_memory,
        tasks_at_once=min(int(at_once), record.tasks),
        stages=layout.stages,
        trust_remote_code=spec.trust_remote_code,
    )
