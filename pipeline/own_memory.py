"""Memory from the system itself, for weights that come and go layer by layer.

malloc keeps what threads free, each thread in an arena of its own, so a process that reads layer
after layer through several threads comes to hold several times what it uses. Memory from here goes
back the moment it is freed; or, on request, it is kept for the next layer: the system fills new
pages with zeros first, which costs several times as much as reading the weights into them.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

#: Below, malloc's own: whole pages for a few bytes would waste more than is saved.
_LEAST = 64 << 10
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class OwnMemory:
    """Hands out memory; any thread may take and free.

    Attributes
    ----------
    keeping
        Whether freed memory is kept for whoever takes as much again. What is kept gives way to what
        is taken: both together never exceed the most that was in use at a time.
    """

    def __init__(self) -> None:
        self.keeping = False
        self._lock = threading.Lock()
        # Finalizers may run in the middle of `take`: they only append, which needs no lock.
        self._freed: deque[mmap.mmap] = deque()

    def take(self, size: int) -> Tensor:
        """Uint8 (size,) on the CPU at a multiple of 64 bytes; its content is undefined."""
        if size < _LEAST:
            return torch.empty(size, dtype=torch.uint8)
        memory = self._kept(size) or mmap.mmap(-1, size, flags=_FLAGS)
        array = np.frombuffer(memory, np.uint8)
        weakref.finalize(array, self._free, memory).atexit = False
        return torch.from_numpy(array)

    def release(self) -> None:
        """Give back what is kept, and keep nothing from now on."""
        self.keeping = False
        self._freed.clear()

    @property
    def kept(self) -> int:
        """Bytes that are kept."""
        return sum(map(len, list(self._freed)))

    def _free(self, memory: mmap.mmap) -> None:
        if self.keeping:
            self._freed.append(memory)

    def _kept(self, size: int) -> mmap.mmap | None:
        """Memory of just that size; where there is none, others make room for as much."""
        with self._lock:
            others: list[mmap.mmap] = []
            while self._freed:
                memory = self._freed.popleft()
                if len(memory) == size:
                    self._freed.extend(others)
                    return memory
                others.append(memory)
            room = 0
            while others and room < size:
                room += len(others.pop())
            self._freed.extend(others)
        return None
