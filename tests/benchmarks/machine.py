"""What this machine can do: float32 matrix products, reading memory, reading the disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch


def product_rate(threads: int, size: int = 3072) -> float:
    """FLOP/s of the better of numpy's and torch's float32 products of square matrices."""
    torch.set_num_threads(threads)
    draw = np.random.default_rng(0)
    a, b = (draw.standard_normal((size, size), np.float32) for _ in range(2))
    out = np.empty_like(a)
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    rates = []
    for multiply in (lambda: np.matmul(a, b, out=out), lambda: torch.mm(x, y)):
        rates.append(2 * size**3 / min(timed(multiply) for _ in range(3)))
    return max(rates)


def disk_rate(root: Path) -> float:
    """Bytes/s at which the files below a folder come from a cold disk through plain reads."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    forget(root)
    buffer = bytearray(1 << 22)
    start, total = time.perf_counter(), 0
    for path in files:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total / (time.perf_counter() - start)


def memory_rate(bytes_: int = 1 << 28) -> float:
    """Bytes/s at which one thread sums float32 values that lie in memory."""
    values = np.ones(bytes_ // 4, np.float32)
    return bytes_ / min(timed(values.sum) for _ in range(3))


def forget(root: Path) -> None:
    """Drop every file below the folder from the page cache."""
    for path in filter(Path.is_file, root.rglob("*")):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def timed(work: Callable[[], object]) -> float:
    """Seconds that the work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
