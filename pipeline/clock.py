"""Where a worker's time goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

#: The kinds of work that time is split into.
KINDS = ("compute", "statistics", "lens", "copy", "encode", "write", "wait")


class Clock:
    """Seconds by kind of work, added up by several threads."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._lock = threading.Lock()

    @contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Add the time of the block to ``kind``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(kind, time.perf_counter() - started)

    def add(self, kind: str, seconds: float) -> None:
        """Add seconds to ``kind``; negative ones move time that was counted elsewhere."""
        with self._lock:
            self._seconds[kind] += seconds

    def seconds(self) -> Mapping[str, float]:
        """Seconds so far, by kind."""
        with self._lock:
            return {kind: round(self._seconds[kind], 6) for kind in KINDS}
