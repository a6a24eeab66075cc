"""c. The shard writer alone, against the same bytes written raw and flushed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
from depthscope.storage.arrays import ArrayPlan
from depthscope.storage.shard_writer import write_shard
from findings import Finding, Section
from numpy.typing import NDArray
from scale import Setting

POINTS, HIDDEN, CHUNK = 4, 576, 512

METHOD = (
    "One sample writes {points} shards of (1, {rows:,}, 576) bfloat16 ({megabytes:.0f} MB), each"
    " flushed, with index, crc32c of every chunk and digest; raw is `write` of the same values in"
    " pieces of one chunk and `fsync`. Both take turns on the same disk, in changing order."
)


def run(setting: Setting) -> Section:
    """Raw, uncompressed and compressed take turns."""
    rows = setting.scale.writer_rows
    values = activations_like((POINTS, rows, HIDDEN))
    contestants: dict[str, Callable[[Path], None]] = {
        "raw": lambda folder: _raw(values, folder),
        "none": lambda folder: _ours(values, folder, "none"),
        "zstd": lambda folder: _ours(values, folder, "zstd"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(setting.scale.rounds + 3):
        names = list(contestants)
        for name in names[turn % 3 :] + names[: turn % 3]:
            seconds[name].append(_timed(contestants[name], setting.scratch / "written"))
    seconds = {name: taken[1:] for name, taken in seconds.items()}  # the first round warms up
    raw = seconds["raw"]
    share = [mine / other for mine, other in zip(raw, seconds["none"], strict=True)]
    packed = [mine / other for mine, other in zip(raw, seconds["zstd"], strict=True)]
    rate = [values.nbytes / 1e6 / taken for taken in raw]
    megabytes = values.nbytes / 1e6
    return Section(
        "c",
        "The writer alone",
        METHOD.format(points=POINTS, rows=rows, megabytes=megabytes),
        [
            Finding("uncompressed, share of the raw write's speed", share, "×", "at least", 0.8),
            Finding("zstd, share of the raw write's speed", packed, "×"),
            Finding("raw write with fsync", rate, "MB/s"),
        ],
        {f"seconds_{name}": taken for name, taken in seconds.items()},
    )


def activations_like(shape: tuple[int, ...]) -> NDArray[np.generic]:
    """bfloat16 values spread like a residual stream's: normal, one scale per channel."""
    generator = np.random.default_rng(0)
    scale = np.exp(generator.normal(0, 1, shape[-1])).astype(np.float32)
    out = np.empty(shape, ml_dtypes.bfloat16)
    for plane in out.reshape(-1, *shape[-2:]):
        plane[...] = generator.standard_normal(shape[-2:], np.float32) * scale
    return out


def plan_of(shape: tuple[int, ...], codec: str = "none") -> ArrayPlan:
    """An array as a run lays out its residual stream: one shard per point."""
    _, rows, hidden = shape
    return ArrayPlan(
        path="residual",
        shape=shape,
        dtype="bfloat16",
        dimensions=("point", "row", "hidden"),
        chunk=(1, CHUNK, hidden),
        shard=(1, rows, hidden),
        codec=codec,
    )


def _raw(values: NDArray[np.generic], folder: Path) -> None:
    for point, plane in enumerate(values):
        file = os.open(folder / f"{point}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        data = memoryview(plane.view(np.uint16)).cast("B")
        piece = CHUNK * HIDDEN * 2
        for start in range(0, len(data), piece):
            os.write(file, data[start : start + piece])
        os.fsync(file)
        os.close(file)


def _ours(values: NDArray[np.generic], folder: Path, codec: str) -> None:
    plan = plan_of(values.shape, codec)
    for point, plane in enumerate(values):
        write_shard(plan, (point, 0, 0), plane[None], folder / f"{point}")


def _timed(write: Callable[[Path], None], folder: Path) -> float:
    folder.mkdir()
    start = time.perf_counter()
    write(folder)
    seconds = time.perf_counter() - start
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    os.sync()
    return seconds
