"""Shards of a store that joins others: copied where one is a source's own, else put together."""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .array_names import group_of
from .arrays import ArrayPlan, Index
from .commits import digest_file
from .digested_file import DigestedFile
from .errors import Damage, WorkFailed
from .merge_plan import Member, Source
from .shard_reader import Array, ArrayReader
from .shard_writer import ShardWriter, WrittenShard

#: Bytes read at a time, as far as chunks allow.
_BLOCK = 8 << 20
#: Tasks of sources whose checked files are remembered.
_TASKS_KEPT = 8


class Stretch(NamedTuple):
    """Stored rows ``first`` to ``last`` (end excluded) of one task of a source."""

    source: Source
    task: int
    first: int
    last: int


class ShardMaker:
    """Makes shards of a joined store under temporary names; used by several threads.

    Parameters
    ----------
    members
        The corpora that are joined.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self._lock = threading.Lock()
        self._checked: dict[tuple[Path, int], dict[str, Future[None]]] = {}
        self._reader = lru_cache(maxsize=256)(ArrayReader)
        self._starts = {
            (number, group): [
                member.selections.task(task).stored[group][0] for task in range(member.record.tasks)
            ]
            for number, member in enumerate(members)
            for group in member.record.groups
        }

    def make(self, plan: ArrayPlan, index: Index, temporary: Path) -> WrittenShard:
        """Write one shard of the result.

        Raises
        ------
        Damage
            A source's file differs from its commit's digest.
        WorkFailed
            A file cannot be read or written.
        """
        position = index[plan.row_axis]
        stretches = list(self._stretches(group_of(plan.path), *plan.shard_rows(position)))
        if (own := self._same_shard(plan, index, stretches)) is not None:
            return self._copy(plan, index, stretches[0], own, temporary)
        return self._assemble(plan, index, stretches, temporary)

    def _stretches(self, group: str, first: int, last: int) -> Iterator[Stretch]:
        """The sources of stored rows [first, last) of the result, in order."""
        for number, member in enumerate(self._members):
            offset = member.first_stored.get(group, 0)
            rows = member.record.groups[group].rows
            begin, end = max(first - offset, 0), min(last - offset, rows)
            starts = self._starts[number, group]
            while begin < end:
                # Tasks without a stored row begin where the next one does: take the last of them.
                task = bisect_right(starts, begin) - 1
                until = min(end, starts[task + 1] if task + 1 < len(starts) else rows)
                source = member.store_of(task)
                assert source is not None
                yield Stretch(source, task, begin, until)
                begin = until

    def _same_shard(
        self, plan: ArrayPlan, index: Index, stretches: Sequence[Stretch]
    ) -> Index | None:
        """The one shard of a source that holds just these values, if there is one."""
        if len(stretches) != 1:
            return None
        source, _, first, last = stretches[0]
        theirs = self._reader(source.root, plan.path).plan
        axis = plan.row_axis
        own = (*index[:axis], first // theirs.shard[axis], *index[axis + 1 :])
        alike = (
            (theirs.chunk, theirs.shard, theirs.codec, theirs.dtype)
            == (plan.chunk, plan.shard, plan.codec, plan.dtype)
            and theirs.shard_rows(own[axis]) == (first, last)
            and theirs.shard_shape(own) == plan.shard_shape(index)
        )
        return own if alike else None

    def _copy(
        self, plan: ArrayPlan, index: Index, stretch: Stretch, own: Index, temporary: Path
    ) -> WrittenShard:
        root, path = stretch.source.root, plan.shard_file(own)
        try:
            digest, size = copy_digested(root / path, temporary)
        except FileNotFoundError:
            raise _differs(root, path, "is missing") from None
        except OSError as error:
            raise WorkFailed(f"copying {root / path}: {error.strerror or error}") from error
        if digest != _stated(stretch, path):
            temporary.unlink(missing_ok=True)
            raise _differs(root, path, "differs from its digest")
        return WrittenShard(plan.shard_file(index), temporary, digest, size)

    def _assemble(
        self, plan: ArrayPlan, index: Index, stretches: Sequence[Stretch], temporary: Path
    ) -> WrittenShard:
        axis, shape = plan.row_axis, plan.shard_shape(index)
        outer = tuple(
            slice(i * size, i * size + length)
            for i, size, length in zip(index[:axis], plan.shard[:axis], shape[:axis], strict=True)
        )
        step = max(1, _BLOCK // max(1, plan.chunk_nbytes)) * plan.chunk[axis]
        with ShardWriter(plan, index, temporary) as writer:
            for first in range(0, shape[axis], step):
                last = min(first + step, shape[axis])
                block = self._read(plan, index, outer, list(_cut(stretches, first, last)))
                for chunk in _chunks(plan, index, first, last):
                    writer.append(chunk, block[_inside(plan, chunk, first)])
            return writer.close()

    def _read(
        self, plan: ArrayPlan, index: Index, outer: tuple[slice, ...], stretches: Sequence[Stretch]
    ) -> Array:
        parts = []
        for stretch in stretches:
            reader = self._reader(stretch.source.root, plan.path)
            size = reader.plan.shard[plan.row_axis]
            for position in range(stretch.first // size, -(-stretch.last // size)):
                own = list(index)
                own[plan.row_axis] = position
                self._check(stretch, reader.plan.shard_file(tuple(own)))
            parts.append(reader.read(*outer, slice(stretch.first, stretch.last)))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=plan.row_axis)

    def _check(self, stretch: Stretch, path: str) -> None:
        """Compare a source's file with its digest, once while its task is in use."""
        root = stretch.source.root
        with self._lock:
            known = self._checked.setdefault((root, stretch.task), {})
            mine = path not in known
            future = known.setdefault(path, Future())
            # Rows come in order, so the oldest task is done with; at worst it is digested again.
            while len(self._checked) > _TASKS_KEPT:
                del self._checked[next(iter(self._checked))]
        if mine:
            try:
                digest = digest_file(root / path)
                if digest != _stated(stretch, path):
                    raise _differs(root, path, "differs from its digest")
                future.set_result(None)
            except FileNotFoundError:
                future.set_exception(_differs(root, path, "is missing"))
            except BaseException as error:
                future.set_exception(error)
        future.result()


def copy_digested(source: Path, target: Path) -> tuple[str, int]:
    """Copy a file into a new one and flush it; its blake3 and its length."""
    file = DigestedFile(target)
    try:
        with source.open("rb") as content:
            while piece := content.read(_BLOCK):
                file.write([memoryview(piece)], file.end)
        return file.finish(), file.end
    finally:
        file.remove()


def _stated(stretch: Stretch, path: str) -> str:
    """The digest that the commits of a stretch's task state for a file."""
    for commit in stretch.source.commits[stretch.task]:
        for shard in commit.shards:
            if shard.path == path:
                return shard.digest
    raise _differs(stretch.source.root, path, "is in no commit of its task")


def _differs(root: Path, path: str, what: str) -> Damage:
    return Damage(f"{root / path}: {what}; run: depthscope verify {root} --repair")


def _cut(stretches: Sequence[Stretch], first: int, last: int) -> Iterator[Stretch]:
    """The stretches of rows [first, last), counted from the first stretch's first."""
    place = 0
    for stretch in stretches:
        length = stretch.last - stretch.first
        begin, end = max(first - place, 0), min(last - place, length)
        if begin < end:
            yield stretch._replace(first=stretch.first + begin, last=stretch.first + end)
        place += length


def _chunks(plan: ArrayPlan, index: Index, first: int, last: int) -> Iterator[Index]:
    """The chunks of a shard with rows [first, last), counted from the shard's first."""
    axes = [range(count) for count in plan.shard_chunks(index)]
    size = plan.chunk[plan.row_axis]
    axes[plan.row_axis] = range(first // size, -(-last // size))
    return itertools.product(*axes)


def _inside(plan: ArrayPlan, chunk: Index, first: int) -> tuple[slice, ...]:
    """Where a chunk lies in a block that begins at row ``first`` of its shard."""
    starts = [i * size for i, size in zip(chunk, plan.chunk, strict=True)]
    starts[plan.row_axis] -= first
    return tuple(slice(s, s + size) for s, size in zip(starts, plan.chunk, strict=True))
