"""How an intervention sweep is laid over the devices at hand, and what each of them may hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from depthscope.pipeline.costs import ModelCosts
from depthscope.pipeline.gang import PER_DEVICE
from depthscope.pipeline.gang_worker import cut
from depthscope.pipeline.interventions import reach
from depthscope.pipeline.stage_split import split_layers
from depthscope.storage.errors import RequestError
from depthscope.storage.run_record import RunRecord

from .effects_plan import Budget
from .engines import check_engine
from .intervene_spec import InterveneSpec
from .schedule import device_budget, host_budget, stages_asked_for, threads_of


@dataclass(frozen=True)
class EffectsLayout:
    """Where the layers are.

    Attributes
    ----------
    schedule
        ``resident``, ``staged`` or ``sweep``.
    stages, devices
        Of a staged model: its stages, and the devices of each; 1 otherwise.
    """

    schedule: str
    stages: int = 1
    devices: int = 1


def lay_out_layers(spec: InterveneSpec, costs: ModelCosts) -> EffectsLayout:
    """Settle the schedule of a sweep.

    Raises
    ------
    RequestError
        The schedule cannot do what is asked for, there are fewer layers than stages, or the
        cluster that says how many there are does not answer.
    """
    check_engine(spec)
    if spec.stages is not None and spec.schedule != "staged":
        raise RequestError(f"--stages is for --schedule staged, not for {spec.schedule}")
    if spec.what == "gradients":
        if spec.schedule in ("sweep", "staged"):
            raise RequestError(
                "--what gradients goes back through all layers: give --schedule resident, not "
                + spec.schedule
            )
        return EffectsLayout("resident")
    if spec.schedule == "staged":
        return EffectsLayout("staged", *_stages(spec, len(costs.layers)))
    if spec.schedule != "auto":
        return EffectsLayout(spec.schedule)
    fits = 2 * costs.body_bytes < _memory(spec, 1)
    return EffectsLayout("resident" if fits else "sweep")


def _stages(spec: InterveneSpec, layers: int) -> tuple[int, int]:
    """Stages, and devices of each."""
    stages = stages_asked_for(spec, layers)
    if spec.engine == "process" or not spec.address:
        stages = stages or 1
        share = torch.cuda.device_count() / (spec.workers or 1) / stages
        return stages, max(1, int(spec.gpus_per_worker or share))
    from .ray_gang_pool import cluster_stages

    return cluster_stages(spec, layers, threads_of(spec, stages or 1))


def effects_budget(
    spec: InterveneSpec, layout: EffectsLayout, costs: ModelCosts, run: RunRecord
) -> Budget:
    """What a process may hold, and what it holds of the model and of branches on their way."""
    memory = _memory(spec, layout.stages)
    head = 4 * costs.vocabulary * costs.hidden + int(run.identity_fields["lens_memory"])
    sizes = costs.layer_bytes
    if layout.schedule == "resident":
        return Budget(memory, costs.body_bytes + head)
    if layout.schedule == "sweep":
        pairs = max((a + b for a, b in pairwise(sizes)), default=sum(sizes))
        return Budget(memory, max(head, pairs))
    if spec.engine == "process" and torch.cuda.device_count() < layout.stages:
        units = PER_DEVICE * layout.stages
        stages = cut(costs, run, layout.stages, branches=True)
        again = sum(_again(spec, sizes, first) for first, _ in stages)
        weights = costs.body_bytes + again + head
        return Budget(memory, weights, units, computing=layout.stages)
    weights = _stage_weights(spec, layout, costs, run, head)
    if torch.cuda.is_available():
        # What waits for a device waits in host memory, or on the device before it.
        return Budget(memory, weights, units=2)
    # All may wait in front of the slowest stage.
    return Budget(memory, weights, PER_DEVICE * layout.stages)


def _stage_weights(
    spec: InterveneSpec, layout: EffectsLayout, costs: ModelCosts, run: RunRecord, head: int
) -> int:
    """Bytes of the layers that the device with most of them has, and of the head with the last."""
    sizes, largest = costs.layer_bytes, 0
    for first, last in cut(costs, run, layout.stages, branches=True):
        before = _again(spec, sizes, first) if first else costs.frame_bytes
        own = sizes[first:last]
        runs = split_layers(own, own, min(layout.devices, len(own)), first_bytes=before)
        for begin, end in runs:
            held = sum(own[begin:end]) + (0 if begin else before)
            largest = max(largest, held + (head if first + end == len(sizes) else 0))
    return largest


def _again(spec: InterveneSpec, sizes: Sequence[int], first: int) -> int:
    """Bytes of the layers before a stage's first that its layer programs apply again."""
    return sum(sizes[max(0, first - reach(spec.what, spec.span)) : first])


def _memory(spec: InterveneSpec, stages: int) -> int:
    """Bytes that a worker, or each of its stages where they are processes, may hold."""
    processes = 1 if spec.engine == "process" else stages
    return device_budget(spec) or host_budget(spec, processes)
