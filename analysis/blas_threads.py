"""One thread inside each matrix product, so that several products can run beside each other.

OpenBLAS's threads meet many times inside one product or factorisation and spin while they wait.
Where other work wants the cores, that has been measured to cost 15 times the time of a product of
256 × 576 and 30 times that of an eigendecomposition of 576 × 576. Threads of our own meet once per
block instead.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

#: Names that builds of OpenBLAS give to its two functions, with ``{}`` for get and set.
_NAMES = (
    "scipy_openblas_{}_num_threads64_",
    "scipy_openblas_{}_num_threads",
    "openblas_{}_num_threads64_",
    "openblas_{}_num_threads",
)

_lock = threading.Lock()
_inside = 0
_before = 0


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let numpy's products use the calling thread alone until the block ends.

    Nothing changes where numpy's BLAS is not an OpenBLAS that can be found.
    """
    global _inside, _before
    found = _openblas()
    if found is None:
        yield
        return
    get, set_ = found
    with _lock:
        if _inside == 0:
            _before = get()
            set_(1)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                set_(_before)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


@lru_cache(maxsize=1)
def _openblas() -> tuple[Callable[[], int], Callable[[int], Any]] | None:
    import numpy  # noqa: F401  loads the library that is looked for

    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = {line.split(maxsplit=5)[-1] for line in lines if "openblas" in line}
    # scipy brings a library of its own, whose threads are none of ours.
    for path in sorted(paths, key=lambda path: "numpy" not in path):
        library = ctypes.CDLL(path)
        for name in _NAMES:
            if hasattr(library, name.format("set")):
                return getattr(library, name.format("get")), getattr(library, name.format("set"))
    return None
