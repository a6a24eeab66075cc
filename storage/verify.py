"""Is every byte that was committed still there, every row once, every token in its document?

Reads the whole store once, a piece at a time; several files at once. With ``repair``, what fails is
removed together with its commit, so that running the extraction again fills the gap; nothing that
is sound is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from .array_names import GROUPS, array_paths
from .arrays import ArrayPlan
from .check_commits import check_commits
from .check_effects import check_effects
from .check_tokens import check_tokens
from .commits import CommitLog
from .coverage import Coverage
from .errors import Damage, RequestError
from .head import Head
from .layout import StorePaths
from .problem import Problem
from .run_record import RunRecord
from .status import Status, status
from .tasks import Selections

_MEND = "extract into a new store"


def verify(
    root: Path, *, repair: bool = False, on_progress: Callable[[int, int], None] = lambda a, b: None
) -> Status:
    """Check the store.

    Parameters
    ----------
    repair
        Remove what fails, so that the same extraction fills it again.
    on_progress
        Called with commits checked so far and commits in all.

    Returns
    -------
    Status
        ``damaged`` where a problem was found and not repaired away.

    Raises
    ------
    RequestError
        There is no store at ``root``.
    """
    record = RunRecord.load(root)
    problems = [*_check_plan(root, record), *check_tokens(root, record)]
    problems += check_commits(root, record, _coverage(root, record), on_progress)
    problems += check_effects(root)
    if repair:
        _repair(root, problems)
    found = status(root)
    state = "damaged" if problems and not _repaired(root, problems, repair) else found.state
    return replace(found, state=state, problems=[problem.text for problem in problems])


def _check_plan(root: Path, record: RunRecord) -> Iterator[Problem]:
    """Metadata and coordinates that the driver wrote before the first task."""
    for path in array_paths(root):
        try:
            ArrayPlan.read(root, path)
        except (Damage, RequestError, OSError) as error:
            yield Problem(f"{path}: metadata cannot be read ({error}): {_MEND}")
    try:
        selections = Selections(root, record)
        for name, group in record.groups.items():
            rows = selections.stored_rows(name, 0, group.rows)
            if len(rows) != group.rows or np.any(np.diff(rows) <= 0):
                yield Problem(f"{GROUPS[name]}/row: rows are not ascending: {_MEND}")
    except (Damage, RequestError, OSError, ValueError, KeyError) as error:
        yield Problem(f"row coordinates cannot be read ({error}): {_MEND}")
    if record.specification["head"]:
        try:
            Head.load(root)
        except (Damage, RequestError, OSError, ValueError) as error:
            yield Problem(f"{StorePaths(root).head}: {error}: {_MEND}")


def _coverage(root: Path, record: RunRecord) -> Coverage | None:
    """None where the plan cannot be read; `_check_plan` says why."""
    try:
        return Coverage.of(root, record)
    except (Damage, RequestError, OSError, ValueError, KeyError):
        return None


def _repair(root: Path, problems: list[Problem]) -> None:
    """Commits first, so that nobody ever trusts a file that is gone."""
    log = CommitLog(root)
    for problem in problems:
        if problem.commit is not None:
            log.remove(problem.commit)
    for problem in problems:
        for file in problem.files:
            file.unlink(missing_ok=True)


def _repaired(root: Path, problems: list[Problem], repair: bool) -> bool:
    return repair and all(problem.commit is not None for problem in problems)
