"""One pass over numbered blocks, by this process or by the workers of a cluster.

What a pass gathers has a method ``merge``; every worker takes an equal range of the blocks, and
what they gathered is merged here, in order.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import dask
import numpy as np

from .client import Progress, workers_now
from .task_progress import Seen, blocks_seen


class Gathered(Protocol):
    """What one worker has gathered."""

    def merge(self, other: Any) -> None:
        """Add another's."""


Part = TypeVar("Part", bound=Gathered)


def over_blocks(work: Callable[..., Part], blocks: int, seen: Seen | None = None) -> Part:
    """Gather over all blocks.

    Parameters
    ----------
    work
        Method of something that can be pickled: takes a range of blocks, and ``seen``.
    blocks
        How many there are.
    seen
        Called after each block with the blocks done, wherever they are done.
    """
    workers = workers_now()
    if workers == 1 or blocks < 2:
        return work(range(blocks), seen)
    cuts = np.linspace(0, blocks, min(workers, blocks) + 1).astype(int)
    sent = dask.delayed(work, pure=False, traverse=False)
    ranges = [range(int(a), int(b)) for a, b in pairwise(cuts)]
    with blocks_seen(seen, len(ranges)) as heard:
        tasks = [sent(part, own) for part, own in zip(ranges, heard, strict=True)]
        first, *others = dask.compute(*tasks)
    if seen is not None:
        seen(blocks)
    for other in others:
        first.merge(other)
    gathered: Part = first
    return gathered


def counter(progress: Progress, before: int, total: int) -> Seen:
    """Blocks done of one pass, reported as steps of all passes."""
    return lambda done: progress(before + done, total)
