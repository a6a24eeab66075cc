"""A trim in the store's own place: beside it by hard links, then one exchange of names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from .atomic import sync_folder
from .errors import RequestError
from .layout import StorePaths
from .placing import exchange
from .run_record import RunRecord
from .trim import lay_out_trim, trim
from .trim_plan import TrimPlan


def trim_in_place(
    plan: TrimPlan,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], str | None] = lambda: None,
) -> int:
    """Put the smaller store into the place of the whole one, and delete that.

    Returns
    -------
    int
        Bytes of its shards.

    Raises
    ------
    RequestError
        The file system has no hard links.
    Damage, Stopped
        As `trim.trim`; the store is as it was.
    """
    root = Path(os.path.abspath(plan.source))
    beside = _beside(root)
    if beside.exists() and not _is_this(beside, plan):
        # The whole store that an earlier trim has replaced, or one that was never finished.
        shutil.rmtree(beside)
    if not plan.changes:
        return 0
    try:
        _try_link(root, beside)
    except OSError as error:
        raise RequestError(
            f"{root}: no hard links here ({error.strerror}): give --out for a new store"
        ) from None
    lay_out_trim(beside, plan, link=True)
    size = trim(beside, plan, link=True, on_progress=on_progress, stop=stop)
    if not exchange(root, beside):
        # Two steps; a process that dies between them leaves the store under its second name.
        aside = _aside(root)
        os.rename(root, aside)
        os.rename(beside, root)
        os.rename(aside, beside)
    sync_folder(root.parent)
    shutil.rmtree(beside)
    return size


def recover(root: Path) -> None:
    """Give a store its name back that a trim in place lost in the instant between two renames."""
    aside = _aside(Path(os.path.abspath(root)))
    if aside.exists():
        if not root.exists():
            os.rename(aside, root)
        else:
            shutil.rmtree(aside)


def _beside(root: Path) -> Path:
    return root.parent / f".{root.name}.trimming"


def _aside(root: Path) -> Path:
    return root.parent / f".{root.name}.trimmed"


def _is_this(beside: Path, plan: TrimPlan) -> bool:
    if not plan.changes:
        return False
    try:
        return RunRecord.load(beside) == plan.record
    except RequestError:
        return False


def _try_link(root: Path, beside: Path) -> None:
    trial = beside.with_name(f"{beside.name}-link")
    trial.unlink(missing_ok=True)
    os.link(StorePaths(root).run, trial)
    trial.unlink()
