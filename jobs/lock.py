"""One driver per store: the second is refused while the first lives."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths


@contextmanager
def driver_lock(root: Path) -> Iterator[None]:
    """Hold the store's lock for the block; the system lets go of it when the process dies.

    Where a file system has no locks the run goes on: the commit protocol keeps two drivers from
    harming each other, the lock only spares the work that would be done twice.

    Raises
    ------
    RequestError
        Another driver works on the store; says which.
    """
    handle = os.open(StorePaths(root).lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 200).decode(errors="replace").strip() or "unknown"
            raise RequestError(
                f"{root}: another run is writing this store ({holder}): wait for it, or stop it"
            ) from None
        except OSError:
            pass
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def is_running(root: Path) -> bool:
    """Whether a driver on this file system holds the store's lock just now."""
    try:
        handle = os.open(StorePaths(root).lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False
