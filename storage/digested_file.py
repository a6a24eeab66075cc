"""A new file whose blake3 is computed while it is written, and whose write-back begins early.

The kernel is told to begin writing back every few megabytes, so that the disk works while further
bytes arrive and the flush at the end finds little left to do.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from blake3 import blake3

#: Written bytes after which the kernel is told to begin writing them back.
WRITEBACK_BYTES = 4 << 20
#: Bytes read back at a time where pieces came out of order and the digest has to catch up.
CATCH_UP_BYTES = 1 << 20
#: SYNC_FILE_RANGE_WRITE of linux/fs.h: begin writing back, do not wait for it.
_BEGIN = 2


class DigestedFile:
    """A new file, written in pieces at any offset; used by one thread at a time.

    Pieces that follow one another are digested as they pass; the rest is read back at the end,
    normally from the page cache.

    Attributes
    ----------
    end
        One past the last byte written.

    Raises
    ------
    OSError
        The file exists or cannot be made; so every method where the disk fails.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = 0
        self._digested = self._written_back = 0
        # One thread: the model computes on the other cores.
        self._digest = blake3(max_threads=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    @property
    def closed(self) -> bool:
        """Whether the file was finished or removed."""
        return self._file < 0

    def write(self, parts: Sequence[memoryview], offset: int) -> None:
        """Write parts (of bytes) one after another from ``offset`` on, wholly."""
        end = offset
        rest = list(parts)
        while rest:
            written = os.pwritev(self._file, rest, end)
            end += written
            while rest and written >= len(rest[0]):
                written -= len(rest.pop(0))
            if rest:
                rest[0] = rest[0][written:]
        self.end = max(self.end, end)
        if self._digested == offset:
            for part in parts:
                self._digest.update(part)
            self._digested = end
        if self.end - self._written_back >= WRITEBACK_BYTES:
            begin_writeback(self._file, self._written_back, self.end - self._written_back)
            self._written_back = self.end

    def finish(self) -> str:
        """Flush and close the file; its blake3 in hexadecimal."""
        while self._digested < self.end:
            length = min(CATCH_UP_BYTES, self.end - self._digested)
            content = os.pread(self._file, length, self._digested)
            if not content:
                raise OSError("the file became shorter while it was written")
            self._digest.update(content)
            self._digested += len(content)
        os.fsync(self._file)
        self._close()
        return self._digest.hexdigest()

    def remove(self) -> None:
        """Close and remove the file; nothing happens once it is closed."""
        if not self.closed:
            self._close()
            self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        file, self._file = self._file, -1
        os.close(file)


def _find_sync_file_range() -> Callable[[int, int, int, int], int] | None:
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is None:
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]


_sync_file_range = _find_sync_file_range()


def begin_writeback(file: int, offset: int, length: int) -> None:
    """Tell the kernel to begin writing a range of a file to the disk.

    A hint: where the system has no such call, or it fails, the range is written by the flush at the
    end, which reports errors.
    """
    if _sync_file_range is not None:
        _sync_file_range(file, offset, length, _BEGIN)
