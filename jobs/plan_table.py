"""A plan as text: the schedules side by side, what was assumed, and a line for Slurm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from math import ceil
from typing import Any

from depthscope.pipeline.estimates import Case, ScheduleEstimate
from depthscope.pipeline.plan import Plan

#: A job asks Slurm for this much more time, and memory, than the plan says.
TIME_MARGIN, MEMORY_MARGIN = 1.5, 1.2

_WIDTH = 34


def plan_text(found: Plan, choice: str | None) -> str:
    """The whole answer for a terminal."""
    case = found.case
    rows = [("", *(one.schedule for one in found.schedules))]
    rows += [
        (name, *(cell(case, one) if one.fits else "–" for one in found.schedules))
        for name, cell in _ROWS
    ]
    lines = [*_head(case), "", *_table(rows), ""]
    for one in found.schedules:
        if not one.fits:
            lines.append(f"{one.schedule} does not fit: {one.reason}; {one.advice}")
        else:
            lines.append(f"{one.schedule}: limited by {one.limit}; would help: {one.advice}")
    if choice is not None:
        lines += ["", f"auto takes {choice}", slurm_line(found, choice)]
    return "\n".join([*lines, "", *_assumptions(case)])


def plan_content(found: Plan, choice: str | None) -> dict[str, Any]:
    """The whole answer for a program."""
    case = found.case
    costs, volume = case.costs, case.volume
    corpus = asdict(case.corpus)
    corpus.pop("lengths")
    selection = asdict(case.selection)
    return {
        "model": {
            "name": costs.name,
            "family": costs.family,
            "dtype": costs.dtype,
            "attention": costs.attention,
            "layers": len(costs.layers),
            "hidden": costs.hidden,
            "parameters": costs.parameters,
            "body_parameters": costs.body,
            "weight_bytes": costs.body_bytes,
            "flops_per_token": costs.flops(case.corpus.document_tokens),
        },
        "site": {**asdict(case.site), "devices": _devices(case)},
        "corpus": corpus,
        "selection": {**selection, "points": list(case.selection.points)},
        "stored": {**asdict(volume), "bytes": volume.nbytes},
        "speed": case.speed.source,
        "schedules": {one.schedule: _schedule(one) for one in found.schedules},
        "choice": choice,
        "slurm": slurm_line(found, choice) if choice else None,
    }


def _schedule(one: ScheduleEstimate) -> dict[str, Any]:
    return {**asdict(one), "bounds": dict(one.bounds)}


def _devices(case: Case) -> dict[str, Any]:
    kind = asdict(case.site.devices.kind)
    return {**kind, "flops": dict(kind["flops"]), "count": case.site.devices.count}


def slurm_line(found: Plan, choice: str) -> str:
    """Resources to paste behind sbatch, with a margin."""
    site, one = found.case.site, found[choice]
    memory = one.host_memory * MEMORY_MARGIN + 16e9
    if choice == "sweep" and not site.on_host:
        # The page cache that holds the weights counts as the job's.
        memory += found.case.costs.body_bytes
    minutes = ceil(one.seconds * TIME_MARGIN / 600) * 10
    days, rest = divmod(minutes, 24 * 60)
    parts = [
        f"--nodes={site.nodes}",
        "--ntasks-per-node=1",
        *([] if site.on_host else [f"--gpus-per-node={site.devices.count}"]),
        f"--cpus-per-task={site.cores}",
        f"--mem={ceil(min(memory, max(site.memory, one.host_memory)) / 2**30)}G",
        f"--time={days}-{rest // 60:02d}:{rest % 60:02d}:00",
    ]
    return "sbatch " + " ".join(parts)


def _head(case: Case) -> list[str]:
    costs, site, corpus, volume = case.costs, case.site, case.corpus, case.volume
    kind, selection = site.devices.kind, case.selection
    used = sum(layer.used for layer in costs.layers)
    active = f", {used / 1e9:.2f} B of them used by a token" if used < costs.body else ""
    nodes = f"{site.nodes} nodes of " if site.nodes > 1 else ""
    what = [f"{len(selection.points)} points"] if selection.points else []
    what += ["sublayers"] if selection.sublayers else []
    what += ["statistics"] if selection.statistics else []
    what += [f"lens of {selection.lens_rows:,} rows"] if selection.lens_rows else []
    return [
        f"{costs.name}: {costs.parameters / 1e9:.2f} B parameters, {costs.body / 1e9:.2f} B in "
        f"{len(costs.layers)} layers{active}; {costs.body_bytes / 1e9:.1f} GB in {costs.dtype}",
        f"{nodes}{site.devices.count} × {kind.name} of {kind.memory / 1e9:.0f} GB; "
        f"speed: {case.speed.source}",
        f"{corpus.rows:,} tokens ({corpus.source}) in {corpus.documents:,} documents; "
        f"{costs.flops(corpus.document_tokens) / 1e9:.1f} GFLOP and "
        f"{_bytes(volume.nbytes / corpus.rows)} a token",
        f"stored: {', '.join(what)}; {selection.store_dtype}, codec {selection.codec}; "
        f"{_bytes(volume.nbytes)} in tasks of {selection.task_rows:,} rows",
    ]


def _assumptions(case: Case) -> list[str]:
    assumed = case.site.assumed
    lines = [f"assumed: {'; '.join(assumed)}"] if assumed else []
    return [*lines, "T*: rows from which on computing a layer hides loading the next"]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _layers(_: Case, one: ScheduleEstimate) -> str:
    if one.schedule == "sweep":
        return "one, experts in groups" if one.streams_experts else "one at a time"
    counts = [last - first for first, last in (stage.layers for stage in one.stages)]
    if len(counts) == 1:
        return f"all {counts[0]}"
    text = "+".join(map(str, counts))
    if len(text) > _WIDTH:
        text = f"{len(counts)} stages of {min(counts)} to {max(counts)}"
    return text


def _rows_at_once(case: Case, one: ScheduleEstimate) -> str:
    if one.batch_rows is not None:
        return f"{one.batch_rows:,} (T* {one.hiding_rows:,}), stream in {one.residual}"
    text = f"{case.batch_tokens:,}"
    return f"{text}, pipeline busy {one.efficiency:.0%}" if len(one.stages) > 1 else text


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bytes(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"


_ROWS = (
    ("workers", lambda case, one: str(one.workers)),
    ("layers on each device", _layers),
    ("memory of a device", lambda case, one: _bytes(one.device_memory)),
    ("host memory of a node", lambda case, one: _bytes(one.host_memory)),
    ("rows at once", _rows_at_once),
    ("tokens/s", lambda case, one: f"{one.tokens_per_second:,.0f}"),
    ("time", lambda case, one: _duration(one.seconds)),
    ("of it start-up", lambda case, one: _duration(one.start_seconds)),
    (
        "written",
        lambda case, one: f"{_bytes(one.bytes_per_second)}/s, {_bytes(case.volume.nbytes)}",
    ),
    ("files (inodes)", lambda case, one: f"{one.files:,} ({one.inodes:,})"),
    ("limited by", lambda case, one: one.limit),
)
