"""Which tasks of a run one command does, so that several clusters can share a run."""

from __future__ import annotations

import re

from depthscope.storage.errors import RequestError


def chosen_tasks(text: str | None, tasks: int) -> range | list[int]:
    """Task numbers, ascending, from text such as ``0-99`` or ``0,4,8-``; None means all.

    Raises
    ------
    RequestError
        It is something else, or names a task that the run does not have.
    """
    if text is None:
        return range(tasks)
    found: set[int] = set()
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(-(\d*))?\s*", piece)
        if match is None:
            raise RequestError(f"--tasks {text!r}: give numbers and ranges such as 0-99 or 0,4,8-")
        first = int(match[1])
        last = first if match[2] is None else int(match[3]) if match[3] else tasks - 1
        if last >= tasks or first >= tasks:
            raise RequestError(
                f"--tasks {text!r}: this run has {tasks} tasks, so their numbers are 0 to "
                f"{tasks - 1}"
            )
        found.update(range(first, last + 1))
    return sorted(found)
