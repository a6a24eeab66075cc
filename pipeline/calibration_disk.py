"""What writing, reading and copying cost on this machine, measured in a few seconds.

Writing goes through the very writer of shards, flushed; reading drops the pages first.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from depthscope.storage.arrays import ArrayPlan
from depthscope.storage.atomic import write_bytes
from depthscope.storage.errors import RequestError
from depthscope.storage.shard_writer import ShardWriter
from depthscope.storage.tasks import chunk_rows

#: Bytes of one sample of writing or copying.
_SAMPLE = 96 << 20
_ROUNDS = 3
_FLUSHES = 8


@dataclass(frozen=True)
class DiskTimes:
    """Seconds and rates of one disk and of the memory beside it.

    Attributes
    ----------
    folder
        Where it was measured.
    write
        Bytes/s of shards, flushed.
    encode_seconds
        Of a core, for a byte of a shard: checksum, digest and the copy into the page cache.
    read, read_again
        Bytes/s of a file that is not, and that is, in the page cache.
    copy
        Bytes/s of a copy within memory.
    flush_seconds
        Of a small file, written, flushed and renamed.
    """

    folder: str
    write: float
    encode_seconds: float
    read: float
    read_again: float
    copy: float
    flush_seconds: float


def measure_disk(folder: Path, hidden: int, dtype: str) -> DiskTimes:
    """Measure the disk that holds a folder, with shards of that hidden size and dtype.

    Raises
    ------
    RequestError
        the folder cannot be written.
    """
    place = folder / f".depthscope-measure-{secrets.token_hex(4)}"
    try:
        place.mkdir(parents=True)
        file = place / "shard"
        written = [_write(file, hidden, dtype) for _ in range(_ROUNDS)]
        cold = [_read(file, cold=True) for _ in range(_ROUNDS)]
        warm = [_read(file, cold=False) for _ in range(_ROUNDS)]
        flushes = [
            _seconds(lambda: write_bytes(place / "small", b"x" * 4096)) for _ in range(_FLUSHES)
        ]
    except OSError as error:
        raise RequestError(
            f"{folder} cannot be measured: {error.strerror}: choose another --out"
        ) from error
    finally:
        for left in place.glob("*"):
            left.unlink()
        if place.is_dir():
            place.rmdir()
    return DiskTimes(
        str(folder),
        write=median(rate for rate, _ in written),
        encode_seconds=median(seconds for _, seconds in written),
        read=median(cold),
        read_again=median(warm),
        copy=_copy(),
        flush_seconds=min(flushes),
    )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _write(file: Path, hidden: int, dtype: str) -> tuple[float, float]:
    """Bytes/s of one shard, and core seconds a byte."""
    row_bytes = hidden * (4 if dtype == "float32" else 2)
    chunk = chunk_rows(row_bytes, _SAMPLE)
    rows = max(chunk, _SAMPLE // row_bytes // chunk * chunk)
    plan = ArrayPlan(
        path="measure",
        shape=(1, rows, hidden),
        dtype=dtype,
        dimensions=("point", "row", "hidden"),
        chunk=(1, chunk, hidden),
        shard=(1, rows, hidden),
    )
    values = np.ones((1, chunk, hidden), plan.numpy_dtype)
    file.unlink(missing_ok=True)
    started, used = time.perf_counter(), time.thread_time()
    writer = ShardWriter(plan, (0, 0, 0), file)
    for number in range(rows // chunk):
        writer.append((0, number, 0), values)
    size = writer.close().bytes
    return size / (time.perf_counter() - started), (time.thread_time() - used) / size


def _read(file: Path, *, cold: bool) -> float:
    """Bytes/s of reading a file from its beginning to its end."""
    size = file.stat().st_size
    # Memory of its own, as weights get, so that the kernel's zeroing of pages counts.
    buffer = memoryview(np.empty(size, np.uint8))  # type: ignore[arg-type]
    handle = os.open(file, os.O_RDONLY)
    try:
        if cold:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        started, place = time.perf_counter(), 0
        while place < size:
            place += os.preadv(handle, [buffer[place : place + (8 << 20)]], place)
        return size / (time.perf_counter() - started)
    finally:
        os.close(handle)


def _copy() -> float:
    """Bytes/s of a copy from memory to memory, with this process's threads."""
    source = torch.ones(_SAMPLE, dtype=torch.uint8)
    target = torch.empty_like(source)
    target.copy_(source)
    return _SAMPLE / median(_seconds(lambda: target.copy_(source)) for _ in range(_ROUNDS))
