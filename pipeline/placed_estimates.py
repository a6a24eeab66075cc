"""Estimates of the schedules that hold all weights on devices: resident and staged.

A pipeline of P devices with M micro-batches works M/(M+P-1) of the time; its slowest stage sets
the pace. Micro-batches follow one another over the borders of tasks, so M counts all of a worker's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from depthscope.storage.errors import RequestError

from .estimates import (
    COMPUTE,
    COPYING,
    Case,
    ScheduleEstimate,
    StageEstimate,
    refused,
)
from .site import START_SECONDS
from .stage_split import split_layers

_GB = 1e9


@dataclass(frozen=True)
class _Placement:
    """One copy of the model over the devices of one or more nodes."""

    stages: tuple[StageEstimate, ...]
    node_layers: tuple[tuple[int, int], ...]


def resident(case: Case) -> ScheduleEstimate:
    """The whole model on one node's devices, as often as it fits; all of them share in it."""
    site, layers = case.site, len(case.costs.layers)
    most = min(site.devices.count, layers)
    for least in range(1, most + 1):
        if not _missing(case, _place(case, 1, least)):
            replicas = site.devices.count // least
            placed = _place(case, 1, min(site.devices.count // replicas, layers))
            host = replicas * _host_bytes(case, (0, layers))
            if site.on_host or host <= site.memory:
                return _estimate(case, "resident", placed, replicas * site.nodes, host)
            return refused(
                "resident",
                _too_little_host(host, site.memory),
                host - site.memory,
                stages=placed.stages,
                host_memory=host,
            )
    placed = _place(case, 1, most)
    return _refuse(case, "resident", placed)


def staged(case: Case) -> ScheduleEstimate:
    """The model cut over all devices of all nodes."""
    site = case.site
    try:
        placed = _place(case, site.nodes, site.devices.count)
    except RequestError as error:
        return refused("staged", str(error))
    if _missing(case, placed):
        return _refuse(case, "staged", placed)
    hosts = [_host_bytes(case, layers) for layers in placed.node_layers]
    if not site.on_host and max(hosts) > site.memory:
        return refused(
            "staged",
            _too_little_host(max(hosts), site.memory),
            max(hosts) - site.memory,
            stages=placed.stages,
            host_memory=max(hosts),
        )
    return _estimate(case, "staged", placed, 1, max(hosts))


def _place(case: Case, nodes: int, devices: int) -> _Placement:
    """Layers over nodes first, as a stage is one actor per node, then over each one's devices."""
    costs = case.costs
    sizes, flops = costs.layer_bytes, costs.layer_flops(case.corpus.document_tokens)
    if nodes * devices > len(sizes):
        raise RequestError(
            f"{nodes * devices} devices cannot share {len(sizes)} layers: each needs one"
        )
    by_node = split_layers(sizes, flops, nodes, first_bytes=costs.frame_bytes)
    stages: list[StageEstimate] = []
    for node, (first, last) in enumerate(by_node):
        before = costs.frame_bytes if node == 0 else 0
        own = split_layers(sizes[first:last], flops[first:last], devices, first_bytes=before)
        for device, (low, high) in enumerate(own):
            layers = (first + low, first + high)
            weights = sum(sizes[layers[0] : layers[1]]) + (before if device == 0 else 0)
            held = weights + case.working
            if layers[1] == len(sizes):
                held += case.lens_bytes
            if case.site.on_host:
                held += _host_bytes(case, layers)
            stages.append(StageEstimate(node, device, layers, weights, held))
    return _Placement(tuple(stages), tuple(by_node))


def _host_bytes(case: Case, layers: tuple[int, int]) -> int:
    """Bytes of host memory beside the weights: blocks, staging areas, statistics."""
    blocks = case.blocks(*layers)
    staging = 0
    if not case.site.on_host:
        row = case.planes(*layers) * case.costs.hidden * case.selection.store_itemsize
        staging = int(2 * row * case.batch_tokens)
    return blocks + staging + case.statistics_bytes(2 * case.selection.task_rows)


def _missing(case: Case, placed: _Placement) -> int:
    return sum(max(0, stage.memory_bytes - case.site.device_memory) for stage in placed.stages)


def _refuse(case: Case, schedule: str, placed: _Placement) -> ScheduleEstimate:
    site, missing = case.site, _missing(case, placed)
    weights = sum(stage.weight_bytes for stage in placed.stages)
    total = sum(stage.memory_bytes for stage in placed.stages)
    count = len(placed.stages)
    reason = (
        f"needs {total / _GB:.1f} GB (weights {weights / _GB:.1f}, work "
        f"{(total - weights) / _GB:.1f}) where {count} × {site.devices.kind.name} offer "
        f"{count * site.device_memory / _GB:.1f} GB: {missing / _GB:.1f} GB are missing"
    )
    return refused(
        schedule,
        reason,
        missing,
        stages=placed.stages,
        device_memory=max(stage.memory_bytes for stage in placed.stages),
    )


def _too_little_host(needed: int, has: int) -> str:
    return (
        f"needs {needed / _GB:.1f} GB of host memory a node for blocks of rows on their way to "
        f"the disk, and may use {has / _GB:.1f} GB: {(needed - has) / _GB:.1f} GB are missing"
    )


def _estimate(
    case: Case, schedule: str, placed: _Placement, workers: int, host: int
) -> ScheduleEstimate:
    volume, corpus = case.volume, case.corpus
    active = min(workers, volume.tasks)
    paces = [_stage_seconds(case, stage) for stage in placed.stages]
    batches = max(1.0, volume.rows_run / active / case.batch_tokens)
    efficiency = batches / (batches + len(paces) - 1)
    twice = corpus.rows / volume.rows_run
    copying = max(case.copy_seconds(*stage.layers) for stage in placed.stages)
    nodes = min(case.site.nodes, active) if schedule == "resident" else 1
    writes = [case.write_rate(case.row_bytes(*layers)) for layers in placed.node_layers]
    name, slowest = min(writes, key=lambda entry: entry[1])
    bounds = {
        COMPUTE: active * efficiency * twice / max(paces),
        name: nodes * slowest,
        COPYING: active / copying if copying else float("inf"),
    }
    limit = min(bounds, key=lambda key: bounds[key])
    rate = bounds[limit]
    start = START_SECONDS + _load_seconds(case, placed)
    commits = volume.tasks * len(placed.node_layers)
    return ScheduleEstimate(
        schedule,
        fits=True,
        workers=workers,
        stages=placed.stages,
        device_memory=max(stage.memory_bytes for stage in placed.stages),
        host_memory=host + (max(_node_weights(placed)) if case.site.on_host else 0),
        efficiency=efficiency,
        tokens_per_second=rate,
        bounds={key: value for key, value in bounds.items() if value != float("inf")},
        limit=limit,
        start_seconds=start,
        seconds=start + corpus.rows / rate,
        bytes_per_second=rate * volume.nbytes / corpus.rows,
        files=volume.files + commits,
        inodes=volume.files + commits + volume.folders,
    )


def _stage_seconds(case: Case, stage: StageEstimate) -> float:
    """Seconds of a row on one device; the lens is the last one's."""
    first, last = stage.layers
    speed = case.speed
    taken = sum(speed.layers[first:last]) + speed.plane * case.planes(first, last)
    if first == 0:
        taken += speed.frame
    if last == len(speed.layers):
        taken += case.lens_seconds()
    return taken + case.stolen(case.row_bytes(first, last)) + case.bookkeeping()


def _node_weights(placed: _Placement) -> Sequence[int]:
    nodes = range(len(placed.node_layers))
    return [sum(s.weight_bytes for s in placed.stages if s.node == node) for node in nodes]


def _load_seconds(case: Case, placed: _Placement) -> float:
    """Every node reads its own weights once, whatever the number of its workers."""
    return max(_node_weights(placed)) / case.site.weights
