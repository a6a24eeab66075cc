"""Open shard files: descriptors and indexes kept for reuse, and reads that fill many buffers.

One cache serves the whole process and all its threads, so that the number of open files is bounded
however many arrays are read. A file stays open while a thread still reads it, even if the cache has
let it go; positions are given with every read, so threads share a descriptor without locking.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections import OrderedDict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .arrays import ArrayPlan
from .errors import Damage
from .selection import Positions
from .sharding import CHECKSUM_BYTES, MISSING, decode_index, index_bytes

#: Files kept open; Linux allows a process 1,024 by default.
OPEN_FILES = 128
#: Buffers that one system call may fill.
BUFFERS_PER_CALL = 1024

#: Pieces closer than this are read together with what lies between: cheaper than another call.
GAP_BYTES = 8 << 10
#: Where what lies between is read to; its content is never looked at, so threads may share it.
_JUNK = memoryview(bytearray(GAP_BYTES))

#: Linux only: read what is in the page cache, begin reading what is not, and do not wait.
_NO_WAIT: int | None = getattr(os, "RWF_NOWAIT", None)
_WILL_NEED: int | None = getattr(os, "POSIX_FADV_WILLNEED", None)


class ShardFile:
    """An open shard file and its index.

    Attributes
    ----------
    index
        Offset and length of every chunk, (chunks, 2) uint64; ``sharding.MISSING`` where none is.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is cut short, or its index is broken.
    """

    def __init__(self, path: Path, chunks: int, chunk_bytes: int | None) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        # Not `__del__`: the interpreter may have taken `os` apart by the time it would run.
        weakref.finalize(self, os.close, self._file)
        status = os.fstat(self._file)
        self.identity = _identity(status)
        length = index_bytes(chunks)
        if status.st_size < length:
            raise ValueError("the file is cut short")
        content = os.pread(self._file, length, status.st_size - length)
        self.index: NDArray[np.uint64] = decode_index(content, status.st_size)
        if chunk_bytes is not None:
            lengths = self.index[self.index[:, 0] != MISSING, 1]
            if (lengths != chunk_bytes + CHECKSUM_BYTES).any():
                raise ValueError("the index states chunks of a wrong length")

    def read(self, buffers: list[memoryview], offset: int) -> None:
        """Fill the buffers one after another from ``offset`` on.

        Raises
        ------
        ValueError
            The file ends before.
        """
        if len(buffers) == 1 and os.preadv(self._file, buffers, offset) == len(buffers[0]):
            return
        buffers = list(buffers)
        first = 0
        while first < len(buffers):
            got = os.preadv(self._file, buffers[first : first + BUFFERS_PER_CALL], offset)
            if got == 0 and len(buffers[first]):
                raise ValueError("the file is cut short")
            offset += got
            while first < len(buffers) and got >= len(buffers[first]):
                got -= len(buffers[first])
                first += 1
            if got:
                buffers[first] = buffers[first][got:]

    def read_pieces(
        self, out: memoryview, offsets: Positions, targets: Positions, lengths: Positions
    ) -> list[tuple[list[memoryview], int]]:
        """Fill pieces of ``out`` from pieces of the file, as far as these are in memory.

        Parameters
        ----------
        out
            Bytes.
        offsets, targets, lengths
            Where each piece is in the file (ascending, none overlapping) and in ``out``.

        Returns
        -------
        list
            What the disk was asked for but has yet to deliver: arguments for `read`.
        """
        late: list[tuple[list[memoryview], int]] = []
        buffers: list[memoryview] = []
        first = size = 0
        gaps = [*(offsets[1:] - offsets[:-1] - lengths[:-1]).tolist(), GAP_BYTES + 1]
        pieces = zip(offsets.tolist(), targets.tolist(), lengths.tolist(), gaps, strict=False)
        for offset, target, length, gap in pieces:
            if not buffers:
                first, size = offset, 0
            buffers.append(out[target : target + length])
            size += length
            if gap <= GAP_BYTES and len(buffers) < BUFFERS_PER_CALL - 2:
                if gap:
                    buffers.append(_JUNK[:gap])
                    size += gap
                continue
            if not self._read_cached(buffers, first, size):
                late.append((buffers, first))
            buffers = []
        return late

    def _read_cached(self, buffers: list[memoryview], offset: int, length: int) -> bool:
        """Fill the buffers if all of it is in memory; otherwise ask for it without waiting."""
        if _NO_WAIT is not None:
            try:
                if os.preadv(self._file, buffers, offset, _NO_WAIT) == length:
                    return True
            except OSError:
                # Not in memory, or a file system without such reads: the waiting read will tell.
                pass
        if _WILL_NEED is not None:
            os.posix_fadvise(self._file, offset, length, _WILL_NEED)
        return False


class ShardCache:
    """The most recently used shard files, open; safe to use from several threads."""

    def __init__(self, limit: int = OPEN_FILES) -> None:
        self._limit = limit
        self._files: OrderedDict[Path, ShardFile] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, path: Path, chunks: int, chunk_bytes: int | None) -> ShardFile:
        """The shard file at ``path``, opened unless it is open already.

        Parameters
        ----------
        path
            The file.
        chunks
            Chunks in the index.
        chunk_bytes
            Length of every chunk without its checksum; None where chunks are compressed.

        Raises
        ------
        FileNotFoundError, ValueError
            As `ShardFile`.
        """
        # A repaired file has the same name as the one it replaces, so the name alone is no key.
        identity = _identity(path.stat())
        with self._lock:
            known = self._files.get(path)
            if known is not None and known.identity == identity:
                self._files.move_to_end(path)
                return known
        opened = ShardFile(path, chunks, chunk_bytes)
        with self._lock:
            self._files[path] = opened
            self._files.move_to_end(path)
            while len(self._files) > self._limit:
                self._files.popitem(last=False)
        return opened


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


#: The cache of this process.
SHARDS = ShardCache()


def open_shard(root: Path, plan: ArrayPlan, path: str, *, anew: bool = False) -> ShardFile:
    """The shard file of an array at ``path`` below the store; ``anew`` passes the cache by.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    Damage
        It is cut short, or its index is broken.
    """
    chunk_bytes = plan.chunk_nbytes if plan.codec == "none" else None
    opened = ShardFile if anew else SHARDS.open
    try:
        return opened(root / path, math.prod(plan.chunks_per_shard), chunk_bytes)
    except ValueError as error:
        raise damage(root, path, str(error)) from error


def damage(root: Path, path: str, what: str) -> Damage:
    """The error for a damaged file: which one, what is wrong, and how to mend it."""
    return Damage(f"{root / path}: {what}; run: depthscope verify {root} --repair")
