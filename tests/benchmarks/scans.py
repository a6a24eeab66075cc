"""n. Norms, cosines and geometry from stored activations, against the disk and the memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import depthscope.analysis as analysis
import machine
from findings import Finding, Section
from scale import Setting
from synthetic import make_store, stored_bytes

METHOD = (
    "A synthetic store of {layers} layers × {rows:,} rows × 576 with sublayers, {gigabytes:.2f} GB"
    " in bfloat16. Norms and cosines: `contributions` from activations, from a cold cache (page"
    " cache dropped), against plain reads of the same files from a cold cache, in turn. Geometry:"
    " `geometry`, which does d² work per value. Growth: both over a quarter and over all rows."
)


def run(setting: Setting) -> Section:
    """Cold scans and plain reads in turn, then growth."""
    quick = setting.scale.rounds < 5
    layers, rows = (4, 16384) if quick else (12, 65536)
    root = make_store(
        setting.scratch / "scan", layers=layers, rows=rows, hidden=576, sublayers=True
    )
    run = analysis.open(root)
    size = stored_bytes(root)
    turns = setting.scale.rounds
    disk, ours = [], []
    for _ in range(turns):
        disk.append(machine.disk_rate(root / "activations.zarr"))
        machine.forget(root)
        ours.append(size / _timed(lambda: _contributions(run, setting.scratch)))
    shares = [mine / plain for mine, plain in zip(ours, disk, strict=True)]
    warm = [size / _timed(lambda: _contributions(run, setting.scratch)) for _ in range(turns)]
    quarter = analysis.open(root).where(f"row < {rows // 4}")
    growth = [
        _timed(lambda: _contributions(run, setting.scratch))
        / (4 * _timed(lambda: _contributions(quarter, setting.scratch)))
        for _ in range(turns)
    ]
    whole = [_timed(lambda: _geometry(run, setting.scratch)) for _ in range(2)]
    part = [_timed(lambda: _geometry(quarter, setting.scratch)) for _ in range(2)]
    residual = (layers + 1) * rows * 576 * 2
    return Section(
        "n",
        "Scans of stored activations",
        METHOD.format(layers=layers, rows=rows, gigabytes=size / 1e9),
        [
            Finding("norms and cosines, cold: share of the disk's speed", shares, "×",
                    "at least", 0.6),
            Finding("norms and cosines, warm", [rate / 1e9 for rate in warm], "GB/s"),
            Finding("plain reads, cold", [rate / 1e9 for rate in disk], "GB/s"),
            Finding("one thread summing float32 in memory", [machine.memory_rate() / 1e9], "GB/s"),
            Finding("norms and cosines: time of 4× the rows over 4 × the time", growth, "×",
                    "at most", 1.1),
            Finding("geometry, warm", [residual / 1e9 / taken for taken in whole], "GB/s"),
            Finding("geometry: time of 4× the rows over 4 × the time",
                    [a / (4 * b) for a, b in zip(whole, part, strict=True)], "×", "at most", 1.1),
        ],
    )  # fmt: skip


def _contributions(run: analysis.Run, scratch: Path) -> None:
    analysis.contributions(run, "activations", out=scratch / f"c{time.time_ns()}.zarr")


def _geometry(run: analysis.Run, scratch: Path) -> None:
    analysis.geometry(run, out=scratch / f"g{time.time_ns()}.zarr", memory=4 * 10**9)


def _timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
