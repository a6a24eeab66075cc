"""The estimate of a sweep: layers outermost, over as many rows as memory allows.

    t_layer(T) = max(weights / bandwidth, T · compute, T · bytes / storage)

for T rows that go through a layer together. Weights come over the link from the page cache where
the node's memory holds them all, else from the disk; all devices of a node read the same layer at
the same time, so it comes from there once. T* is where computing begins to hide the loading.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from depthscope.storage.errors import RequestError

from .estimates import (
    COMPUTE,
    COPYING,
    LOADING,
    MEMORY,
    Case,
    ScheduleEstimate,
    StageEstimate,
    refused,
)
from .memory import MemoryNeed, Residual, SweepNeeds, sweep_memory
from .memory_budget import streaming_needs, tasks_at_once
from .site import START_SECONDS

#: A sweep takes this many times T* where memory allows: loading is then an eighth of computing,
#: and more rows would gain nothing but take longer to their first commit.
ENOUGH = 8

#: A place that is reached faster is preferred to one that is this much better.
_AS_GOOD = 1.02


@dataclass(frozen=True)
class _Sweep:
    """A sweep of so many tasks together, and what one worker takes for all of its rows."""

    residual: Residual
    tasks: int
    streams_experts: bool
    need: MemoryNeed
    seconds: float
    terms: dict[str, float]
    load: float


def sweep(case: Case) -> ScheduleEstimate:
    """Every device takes its own rows through all layers, one layer at a time."""
    needs, site = sweep_needs(case), case.site
    own = site.memory // site.devices.count if site.on_host else site.device_memory
    streamed = streaming_needs(needs, case.costs, own)
    errors = list[RequestError]()
    # Experts are streamed within a layer only where whole layers do not fit.
    for possible in (needs, streamed):
        best: _Sweep | None = None
        for residual in _places(case) if possible else []:
            try:
                found = _sweep(case, possible or needs, residual)
            except RequestError as error:
                errors.append(error)
                continue
            if best is None or best.seconds > _AS_GOOD * found.seconds:
                best = found
        if best is not None:
            return _estimate(case, best)
    need = sweep_memory(streamed or needs, 1, "host", on_host=site.on_host)
    return refused("sweep", str(errors[-1 if streamed else 0]), _missing(case, need))


def sweep_needs(case: Case) -> SweepNeeds:
    """What decides the memory of one sweep worker."""
    costs, selection, volume = case.costs, case.selection, case.volume
    share = volume.rows_run / case.corpus.rows
    return SweepNeeds(
        layer_bytes=costs.layer_bytes,
        frame_bytes=costs.frame_bytes,
        hidden=costs.hidden,
        inner=costs.inner,
        itemsize=costs.itemsize,
        store_itemsize=selection.store_itemsize,
        task_rows=int(min(selection.task_rows, case.corpus.rows) * share),
        batch_tokens=case.batch_tokens,
        planes=(1 if selection.points else 0) + (2 if selection.sublayers else 0),
        stores_stream=selection.holds_stream(len(costs.layers), costs.dtype),
        statistics=selection.statistics,
        vocabulary=costs.vocabulary,
        lens_rows=min(selection.lens_rows, selection.task_rows),
        lens_memory=selection.lens_memory,
        eager_heads=costs.heads if costs.attention == "eager" else 0,
        longest=case.corpus.longest,
    )


def _places(case: Case) -> list[Residual]:
    places: list[Residual] = ["host"] if case.site.on_host else ["device", "host"]
    if case.selection.holds_stream(len(case.costs.layers), case.costs.dtype):
        places.append("store")
    return places


def _workers(case: Case) -> int:
    return min(case.site.nodes * case.site.devices.count, case.volume.tasks)


def _sweep(case: Case, needs: SweepNeeds, residual: Residual) -> _Sweep:
    site, workers = case.site, _workers(case)
    least = sweep_memory(needs, 1, residual, on_host=site.on_host)
    load = _load_seconds_per_byte(case, least)
    enough = ceil(ENOUGH * _hiding_rows(case, load) / case.selection.task_rows)
    tasks = tasks_at_once(
        needs,
        site.memory // site.devices.count,
        device_memory=None if site.on_host else site.device_memory,
        residual=residual,
        most=min(enough, ceil(case.volume.tasks / workers)),
    )
    need = sweep_memory(needs, tasks, residual, on_host=site.on_host)
    rows = case.volume.rows_run / workers
    together = min(rows, tasks * case.selection.task_rows)
    terms = dict.fromkeys((COMPUTE, LOADING, COPYING, "writing"), 0.0)
    name = case.write_rate(1.0)[0]
    seconds = 0.0
    for layer, size in enumerate(case.costs.layer_bytes):
        parts = _layer_seconds(case, layer, size, together, residual, load)
        if needs.answers:
            parts[COMPUTE] *= 1 + _run_twice(case, layer)
        parts[name] = parts.pop("writing")
        seconds += max(parts.values())
        for key, value in parts.items():
            terms[key] = terms.get(key, 0.0) + value
    passes = rows / together
    # The first layer of every pass is waited for.
    seconds = passes * (seconds + case.costs.layer_bytes[0] * load)
    outside = rows * (case.speed.frame + case.lens_seconds())
    return _Sweep(residual, tasks, bool(needs.answers), need, seconds + outside, terms, load)


def _run_twice(case: Case, layer: int) -> float:
    """Share of a layer that runs twice where its experts are streamed: what lies before them."""
    costs, tokens = case.costs.layers[layer], case.corpus.document_tokens
    return 1 - 2 * costs.expert_parameters * costs.experts_used / costs.flops(tokens)


def _hiding_rows(case: Case, load: float) -> float:
    """T*: rows whose computing takes as long as loading the layers."""
    return load * sum(case.costs.layer_bytes) / sum(case.speed.layers)


def _load_seconds_per_byte(case: Case, need: MemoryNeed) -> float:
    """From the page cache where it holds the model beside what the workers need."""
    site = case.site
    cached = case.costs.body_bytes <= site.memory - site.devices.count * need.host_total
    return case.speed.load if cached else max(case.speed.load, 1 / site.weights)


def _layer_seconds(
    case: Case, layer: int, size: int, rows: float, residual: Residual, load: float
) -> dict[str, float]:
    """Seconds of each kind of work for one layer over so many rows."""
    site, speed, count = case.site, case.speed, case.site.devices.count
    point = case.costs.point_bytes()
    written = case.row_bytes(layer, layer + 1)
    planes = case.planes(layer, layer + 1)
    computing = rows * (speed.layers[layer] + speed.plane * planes + case.stolen(written))
    # On a processor, reading and the two small files of what is carried take the model's cores.
    computing += size * speed.load * speed.stolen + rows * (speed.call + case.bookkeeping())
    computing += rows / case.selection.task_rows * 2 * speed.flush
    weights, stream = size * load, 0.0
    leaving = rows * case.copy_seconds(layer, layer + 1)
    if residual == "host" and not site.on_host:
        stream = rows * point / site.devices.kind.link
        leaving += stream
    if residual == "store":
        stream = rows * point * count / site.weights
        # Reading it back is done by the thread that computes, on a processor.
        computing += stream if site.on_host else 0.0
    # Weights and stream share the way in; what is the greater part gives the bound its name.
    coming = weights + (0.0 if site.on_host else stream)
    leaving = max(leaving, coming) if stream > weights else leaving
    writing = rows * count / case.write_rate(written)[1]
    return {COMPUTE: computing, LOADING: coming, COPYING: leaving, "writing": writing}


def _missing(case: Case, need: MemoryNeed) -> int:
    site = case.site
    host = need.host_total - site.memory // site.devices.count
    device = 0 if site.on_host else need.device_total - site.device_memory
    return max(0, host) * site.devices.count + max(0, device)


def _estimate(case: Case, found: _Sweep) -> ScheduleEstimate:
    costs, site, workers = case.costs, case.site, _workers(case)
    rows = min(found.tasks * case.selection.task_rows, case.volume.rows_run // workers)
    hiding = _hiding_rows(case, found.load)
    limit = max(found.terms, key=lambda key: (found.terms[key], key == COPYING))
    if limit == LOADING and found.tasks < ceil(case.volume.tasks / workers):
        limit = MEMORY
    rate = case.corpus.rows / found.seconds
    body = costs.body_bytes
    first_read = body / site.weights if found.load < 1 / site.weights else 0.0
    start = START_SECONDS + first_read
    device = found.need.host_total if site.on_host else found.need.device_total
    largest = max(range(len(costs.layers)), key=lambda layer: costs.layer_bytes[layer])
    stage = StageEstimate(0, 0, (0, len(costs.layers)), costs.layer_bytes[largest], device)
    files = case.volume.files + case.volume.tasks * len(costs.layers)
    return ScheduleEstimate(
        "sweep",
        fits=True,
        workers=site.nodes * site.devices.count,
        stages=(stage,),
        device_memory=device,
        host_memory=site.devices.count * found.need.host_total,
        batch_rows=rows,
        hiding_rows=round(hiding),
        residual=found.residual,
        streams_experts=found.streams_experts,
        tokens_per_second=rate,
        bounds=_bounds(found, rate),
        limit=limit,
        start_seconds=start,
        seconds=start + found.seconds,
        bytes_per_second=rate * case.volume.nbytes / case.corpus.rows,
        files=files,
        inodes=files + case.volume.folders,
    )


def _bounds(found: _Sweep, rate: float) -> dict[str, float]:
    """Tokens/s that each kind of work alone would allow."""
    most = max(found.terms.values())
    return {name: rate * most / value for name, value in found.terms.items() if value}
