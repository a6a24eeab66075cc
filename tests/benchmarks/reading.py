"""d. Reading from a cold and from a warm cache, against a memory-mapped raw file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from depthscope.storage.arrays import create_array
from depthscope.storage.shard_reader import ArrayReader
from depthscope.storage.shard_writer import write_shard
from findings import BenchmarkFailed, Finding, Section
from numpy.typing import NDArray
from scale import Setting
from writing import activations_like, plan_of

POINTS, HIDDEN = 31, 576

METHOD = (
    "An uncompressed array of {points} points × {rows:,} rows × 576 bfloat16 ({megabytes:.0f} MB),"
    " one shard per point, and the same values in one raw file read through `numpy.memmap`. Each"
    " sample opens the array anew and takes the values into memory; both must return the same"
    " values. Cold: after `posix_fadvise(DONTNEED)` on every file, with nothing mapped; that the"
    " pages were gone shows in `RESULTS.json`, in the bytes read from the device. Both take turns."
)

Read = Callable[[], NDArray[np.generic]]


def run(setting: Setting) -> Section:
    """Every selection, cold and warm, both ways in turn."""
    rows, root = setting.scale.reader_rows, setting.scratch / "read"
    raw = _prepare(root, rows)
    scattered = np.sort(
        np.random.default_rng(1).choice(rows, setting.scale.scattered, replace=False)
    )
    selections: dict[str, tuple[Any, ...]] = {
        "one layer": (15, slice(None), slice(None)),
        "a pair of layers": (np.array([14, 20]), slice(None), slice(None)),
        f"{len(scattered):,} scattered rows of all points": (slice(None), scattered, slice(None)),
    }
    findings, samples = [], {}
    for name, selection in selections.items():
        for cold in (True, False):
            taken = _compare(root, raw, selection, rows, cold, setting.scale.rounds + 2)
            samples[f"{name}, {'cold' if cold else 'warm'}"] = taken
            findings.append(_finding(name, cold, taken))
    return Section(
        "d",
        "Reading",
        METHOD.format(points=POINTS, rows=rows, megabytes=raw.stat().st_size / 1e6),
        findings,
        samples,
    )


def _prepare(root: Path, rows: int) -> Path:
    root.mkdir()
    plan = plan_of((POINTS, rows, HIDDEN))
    create_array(root, plan)
    raw = root / "raw"
    with raw.open("wb") as file:
        for point in range(POINTS):
            plane = activations_like((1, rows, HIDDEN))
            plane.view(np.uint16)[..., 0] = point  # so that a plane taken for another shows
            path = root / plan.shard_file((point, 0, 0))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_shard(plan, (point, 0, 0), plane, path)
            file.write(plane.view(np.uint16).data)
        file.flush()
        os.fsync(file.fileno())
    return raw


def _compare(
    root: Path, raw: Path, selection: tuple[Any, ...], rows: int, cold: bool, turns: int
) -> dict[str, list[float]]:
    readers: dict[str, Read] = {
        "ours": lambda: ArrayReader(root, "residual").read(*selection),
        "mapped": lambda: _mapped(raw, rows, selection),
    }
    taken: dict[str, list[float]] = {f"{name}_seconds": [] for name in readers}
    taken |= {f"{name}_device_bytes": [] for name in readers}
    for turn in range(turns + 1):
        got = {}
        for name in list(readers)[:: 1 if turn % 2 else -1]:
            if cold:
                _forget(root)
            before, start = _device_bytes(), time.perf_counter()
            got[name] = readers[name]()
            seconds, read = time.perf_counter() - start, _device_bytes() - before
            if turn:  # the first turn warms up
                taken[f"{name}_seconds"].append(seconds)
                taken[f"{name}_device_bytes"].append(read)
        if not np.array_equal(got["ours"].view(np.uint16), got["mapped"]):
            raise BenchmarkFailed(f"the reader and the raw file differ for {selection}")
    return taken


def _mapped(raw: Path, rows: int, selection: tuple[Any, ...]) -> NDArray[np.uint16]:
    values = np.memmap(raw, np.uint16, "r", shape=(POINTS, rows, HIDDEN))
    points = selection[0]
    if isinstance(points, np.ndarray):  # numpy's own indexing takes three times as long
        return np.stack([values[point] for point in points])
    return np.array(values[selection])


def _forget(root: Path) -> None:
    """Drop every file below the folder from the page cache."""
    for path in filter(Path.is_file, root.rglob("*")):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def _device_bytes() -> int:
    """Bytes this process has had fetched from the device."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def _finding(name: str, cold: bool, taken: dict[str, list[float]]) -> Finding:
    pairs = list(zip(taken["ours_seconds"], taken["mapped_seconds"], strict=True))
    label = f"{name}, {'cold' if cold else 'warm'}"
    if "scattered" in name:
        ratio = [ours / mapped for ours, mapped in pairs]
        label += ": time over the mapped file's"
        return Finding(label, ratio, "×", *(("at most", 2.0) if cold else ()))
    ratio = [mapped / ours for ours, mapped in pairs]
    label += ": share of the mapped file's speed"
    return Finding(label, ratio, "×", *(("at least", 0.7) if cold else ()))
