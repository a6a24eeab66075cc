"""Is there room on the disk: bytes and file names, checked before anything expensive starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod
from pathlib import Path

from depthscope.storage.arrays import ArrayPlan
from depthscope.storage.errors import RequestError
from depthscope.storage.run_record import RunRecord

#: Left free for everything else on the disk.
_RESERVE = 64 << 20


def needed(plans: Sequence[ArrayPlan], record: RunRecord) -> tuple[int, int]:
    """Bytes (uncompressed, an upper bound) and files that the finished store adds."""
    size = sum(plan.nbytes for plan in plans)
    files = sum(prod(plan.grid) for plan in plans) + 2 * record.tasks
    return size, files


def check_room(folder: Path, plans: Sequence[ArrayPlan], record: RunRecord) -> None:
    """Refuse a run that the disk cannot take.

    Raises
    ------
    RequestError
        Says how much is needed and how much is free.
    """
    size, files = needed(plans, record)
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if size + _RESERVE > free:
        raise RequestError(
            f"{folder}: the store needs up to {size / 1e9:.2f} GB, the disk has "
            f"{free / 1e9:.2f} GB free: store fewer --points or --rows, or choose another --out"
        )
    if disk.f_files and files > disk.f_favail:
        raise RequestError(
            f"{folder}: the store needs {files} files, the disk has {disk.f_favail} left: "
            "give a larger --task-rows, or choose another --out"
        )
