"""How much a process reads, by the kernel's own count."""

from __future__ import annotations

import threading
from pathlib import Path


def bytes_read() -> int:
    """Bytes that this process has read so far, from the page cache or below; 0 where unknown."""
    try:
        return int(Path("/proc/self/io").read_text().split()[1])
    except OSError:
        return 0


class ReadMeter:
    """Hands out what the process has read, every byte once.

    Made before anything is loaded, so that a worker's first commit has the weights that it read;
    each later one has what came since the commit before it.
    """

    def __init__(self) -> None:
        self._taken = bytes_read()
        self._lock = threading.Lock()

    def take(self) -> int:
        """Bytes read since the last call, or since the meter was made."""
        with self._lock:
            now = bytes_read()
            new, self._taken = now - self._taken, now
        return new
