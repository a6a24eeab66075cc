"""How the model is laid over the devices at hand: which schedule, and how much a sweep takes on."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from depthscope.pipeline.costs import ModelCosts, model_costs
from depthscope.pipeline.description import load_config
from depthscope.pipeline.memory import Residual, SweepNeeds
from depthscope.pipeline.memory_budget import streaming_needs, tasks_at_once
from depthscope.pipeline.plan import choose
from depthscope.pipeline.quantisation import RESIDENT_ONLY, refuse_quantised
from depthscope.storage.errors import RequestError
from depthscope.storage.run_record import RunRecord

from .groups import item_size
from .intervene_spec import InterveneSpec
from .plan_store import plan_of_store
from .spec import ExtractSpec

#: A worker that is given no budget takes this share of what is free, so that the machine stays
#: usable and the page cache has room for the weights.
SHARE = 0.5
#: Stages in one process, where nobody says how many.
STAGES_IN_PROCESS = 2
#: Rows that a sweep takes at most: far beyond what hides the reading of weights on any device.
MOST_ROWS = 1 << 20


@dataclass(frozen=True)
class Layout:
    """What a worker is told about the schedule.

    Attributes
    ----------
    schedule
        ``resident``, ``staged`` or ``sweep``.
    tasks_at_once, residual
        Of a sweep: tasks that share a reading of the weights, and where their stream lives.
    expert_memory
        Bytes of experts that a sweep holds at a time, where a layer does not fit; None where it
        does.
    stages
        Of a staged model; None: as many as the cluster has nodes.
    """

    schedule: str
    tasks_at_once: int = 1
    residual: Residual = "host"
    stages: int | None = 1
    expert_memory: int | None = None


def lay_over_devices(spec: ExtractSpec, record: RunRecord, folder: Path, open_tasks: int) -> Layout:
    """Settle the schedule of a run.

    Raises
    ------
    RequestError
        There are fewer layers than stages, weights are quantised, or the budget holds not even
        the smallest schedule; says how much would.
    """
    quantisation = record.model.get("quantisation")
    if quantisation is not None:
        if spec.schedule in ("staged", "sweep"):
            refuse_quantised(str(quantisation), folder, RESIDENT_ONLY)
        return Layout("resident")
    if spec.schedule == "staged":
        return Layout("staged", stages=stages_asked_for(spec, int(record.model["layers"])))
    if spec.schedule == "resident":
        return Layout("resident")
    config = load_config(folder, spec.trust_remote_code)
    dtype, attention = str(record.model["dtype"]), str(record.model["attention"])
    costs = model_costs(config, dtype, attention=attention)
    if spec.schedule == "auto" and _planned(spec, record, costs) != "sweep":
        return Layout("resident")
    return _sweep(spec, record, costs, -(-open_tasks // (spec.workers or 1)))


def stages_asked_for(spec: ExtractSpec | InterveneSpec, layers: int) -> int | None:
    """Stages of a model of so many layers; None where the cluster decides.

    Raises
    ------
    RequestError
        There are fewer layers than stages.
    """
    if spec.stages is not None and spec.stages > layers:
        raise RequestError(
            f"--stages {spec.stages}: this model has {layers} layers: give at most {layers}"
        )
    if spec.stages is None and spec.engine == "process":
        return min(STAGES_IN_PROCESS, layers)
    return spec.stages


def _sweep(spec: ExtractSpec, record: RunRecord, costs: ModelCosts, most: int) -> Layout:
    needs = sweep_needs(record, costs)
    try:
        return _placed(spec, record, needs, most)
    except RequestError:
        streamed = streaming_needs(needs, costs, device_budget(spec) or host_budget(spec))
        if streamed is None:
            raise
        layout = _placed(spec, record, streamed, most)
        return replace(layout, expert_memory=streamed.conversion_bytes)


def _placed(spec: ExtractSpec, record: RunRecord, needs: SweepNeeds, most: int) -> Layout:
    """Where the stream lives, and how many tasks run together."""
    memory, device = host_budget(spec), device_budget(spec)
    most = max(1, min(most, MOST_ROWS // record.task_rows))
    places: list[Residual] = ["host"] if device is None else ["device", "host"]
    if needs.stores_stream:
        places.append("store")
    refused: RequestError | None = None
    best: Layout | None = None
    for place in places:
        try:
            tasks = tasks_at_once(needs, memory, device_memory=device, residual=place, most=most)
        except RequestError as error:
            refused = error
            continue
        # A slower place is worth it only where a faster one has no room for a single task more.
        if best is None or (tasks > best.tasks_at_once and place != "store"):
            best = Layout("sweep", tasks, place)
    if best is None:
        raise refused or RequestError("no schedule fits")
    return best


def _planned(spec: ExtractSpec, record: RunRecord, costs: ModelCosts) -> str:
    """What the plan's arithmetic chooses for one node; a model over several nodes is asked for."""
    found = plan_of_store(
        spec.out,
        record,
        costs,
        threads=threads_of(spec),
        memory=host_budget(spec),
        device_memory=device_budget(spec),
    )
    try:
        return choose(found)
    except RequestError:
        # The sweep says in its own words what it lacks, or streams the experts of its layers.
        return "sweep"


def sweep_needs(record: RunRecord, costs: ModelCosts) -> SweepNeeds:
    """What decides the memory of a sweep over this store."""
    specification, identity = record.specification, record.identity_fields
    longest = int(record.corpus["longest"])
    lens, stored = record.groups.get("lens"), record.groups.get("activations")
    every = len(record.points) == len(costs.layers) + 1
    whole = stored is not None and stored.rows == record.rows
    return SweepNeeds(
        layer_bytes=costs.layer_bytes,
        frame_bytes=costs.frame_bytes,
        hidden=costs.hidden,
        inner=costs.inner,
        itemsize=costs.itemsize,
        store_itemsize=item_size(str(identity["store_dtype"])),
        # At most one document crosses the border before the task.
        task_rows=min(record.rows, record.task_rows + longest),
        batch_tokens=max(int(identity["batch_tokens"]), longest),
        planes=bool(record.points) + 2 * bool(specification["sublayers"]),
        stores_stream=every and whole and identity["store_dtype"] == costs.dtype,
        statistics="statistics" in record.groups,
        vocabulary=costs.vocabulary,
        lens_rows=-(-lens.rows // record.tasks) if lens else 0,
        lens_memory=int(identity["lens_memory"]),
        eager_heads=costs.heads if costs.attention == "eager" else 0,
        longest=longest,
    )


def threads_of(spec: ExtractSpec | InterveneSpec, stages: int = 1) -> int:
    """Threads of a worker, or of each of its stages."""
    return spec.threads or max(1, (os.cpu_count() or 1) // _sharing(spec, stages))


def host_budget(spec: ExtractSpec | InterveneSpec, stages: int = 1) -> int:
    """Bytes of host memory that one worker, or each of its stages, may hold.

    The interpreter's own come on top. Stages of one process hold it together: they count as one.
    """
    if spec.memory is not None:
        return int(spec.memory)
    return int(SHARE * psutil.virtual_memory().available / _sharing(spec, stages))


def _sharing(spec: ExtractSpec | InterveneSpec, stages: int) -> int:
    # Stages of a cluster are on nodes of their own; those of this command share its node.
    return (spec.workers or 1) * (1 if spec.address else stages)


def device_budget(spec: ExtractSpec | InterveneSpec) -> int | None:
    """Bytes of each device that a worker may use; None where the processor computes."""
    if not torch.cuda.is_available():
        return None
    if spec.device_memory is not None:
        return int(spec.device_memory)
    return int(0.9 * torch.cuda.mem_get_info()[0])
