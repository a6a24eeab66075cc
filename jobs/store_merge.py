"""`depthscope store merge`: checked, locked and stopped like an extraction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from depthscope.storage.layout import StorePaths
from depthscope.storage.merge import lay_out_merge, merge
from depthscope.storage.merge_plan import plan_merge
from depthscope.storage.status import Status

from .lock import driver_lock
from .room import check_room
from .stopping import stop_on_signals


def merge_stores(
    out: Path,
    stores: Sequence[Path],
    *,
    allow_mixed_hardware: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Status:
    """Join stores of one model and specification, or finish a join that was interrupted.

    Raises
    ------
    RequestError
        The stores cannot be joined, ``out`` holds something else, or there is no room.
    Damage
        A file of a source differs from its digest; what is committed stays.
    Stopped
        A signal came; the same call resumes.
    """
    plan = plan_merge(stores, allow_mixed_hardware=allow_mixed_hardware)
    if not StorePaths(out).run.exists() and out.absolute().parent.is_dir():
        check_room(out.absolute().parent, plan.plans, plan.record)
    record = lay_out_merge(out, plan)
    with driver_lock(out), stop_on_signals() as stop:
        return merge(out, plan, record, on_progress=on_progress, stop=stop)
