"""Joining stores into a new one, through the commit protocol; the sources are only read.

The result is laid out whole under a temporary name first. Then task by task its shards are made: a
shard that is also one of a source's is copied as it stands, any other is put together from decoded
rows. In both cases every source's file is digested on the way and compared with its commit. A task
is committed when all its shards are published, so a merge that was killed goes on where it was.

Memory: one block of rows for each of a few threads. Cost: every byte is read and written once where
tasks line up, read twice (the second time mostly from the page cache) where they do not.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from .array_names import GROUPS, group_of
from .arrays import create_array
from .commits import Commit, CommitLog, ShardRecord, publish_shard
from .coordinates import create_coordinate
from .errors import RequestError, Stopped
from .layout import StorePaths
from .merge_frame import copy_file, copy_frame
from .merge_plan import Member, MergePlan
from .merge_shards import ShardMaker
from .merge_tables import join_tables
from .placing import placed
from .run_record import RunRecord, differences
from .status import Status, status, task_rows
from .tables import mark_invalid
from .tasks import Selections
from .token_table import TokenTable

_THREADS = 4


def lay_out_merge(out: Path, plan: MergePlan) -> RunRecord:
    """Make the store that a merge fills, or check that the one that exists is this very merge.

    Returns
    -------
    Its record.

    Raises
    ------
    RequestError
        ``out`` holds something else, or cannot be written; nothing is left behind.
    """
    if StorePaths(out).run.exists():
        return _existing(out, plan)
    with placed(out) as place:
        return _fill(place, plan)


def merge(
    out: Path,
    plan: MergePlan,
    record: RunRecord,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], str | None] = lambda: None,
) -> Status:
    """Fill a store that `lay_out_merge` made with what its sources have and it lacks.

    Parameters
    ----------
    on_progress
        Called with the rows that are done and the rows there are.
    stop
        Says between tasks why to stop, or None.

    Raises
    ------
    Damage
        A file of a source differs from its digest; what is committed stays.
    Stopped
        ``stop`` said so.
    """
    log = CommitLog(out)
    log.drop_partial()
    filler = _Filler(out, plan, record)
    done = set(log.complete_tasks(int(record.model["layers"])))
    rows = sum(task_rows(record, task) for task in done)
    with ThreadPoolExecutor(_THREADS) as threads:
        for task in range(record.tasks):
            on_progress(rows, record.rows)
            if task in done or not filler.ready(task):
                continue
            if reason := stop():
                raise Stopped(reason)
            for commit in filler.commits(task, threads):
                log.add(commit)
            rows += task_rows(record, task)
    on_progress(rows, record.rows)
    log.drop_partial()
    mark_invalid(out, filler.invalid_in_all, anew=True)
    return status(out)


def _existing(out: Path, plan: MergePlan) -> RunRecord:
    record, wanted = RunRecord.load(out), plan.record
    if out.resolve() in {s.root.resolve() for m in plan.members for s in m.stores}:
        raise RequestError(f"{out} is one of the stores that are merged: choose another place")
    # The tokens' digest of joined corpora is known only once they are joined.
    stored, asked = (
        {k: v for k, v in r.identity_fields.items() if k != "tokens" or not plan.joins_corpora}
        for r in (record, wanted)
    )
    if differing := differences(stored, asked):
        raise RequestError(
            f"{out} holds another run; different are: {'; '.join(differing)}. Choose another place"
        )
    return record


def _fill(place: Path, plan: MergePlan) -> RunRecord:
    """Everything of the store but its data."""
    record = plan.record
    copy_frame(plan.roots[0], place, record)
    for array in plan.plans:
        create_array(place, array)
    for name in record.groups:
        rows = [
            member.selections.stored_rows(name, 0, member.record.groups[name].rows)
            + member.first_row
            for member in plan.members
        ]
        attributes = {"long_name": "corpus row"}
        create_coordinate(place, f"{GROUPS[name]}/row", np.concatenate(rows), "row", attributes)
    if plan.joins_corpora:
        text = bool(record.specification.get("text", True))
        digest = join_tables(place, plan.roots, text=text).digest
        fields = {**record.identity_fields, "tokens": digest}
        record = replace(record, identity_fields=fields, corpus={**record.corpus, "digest": digest})
    else:
        for path in (StorePaths(plan.roots[0]).tokens, StorePaths(plan.roots[0]).documents):
            copy_file(path, place / path.name)
    shutil.rmtree(StorePaths(place).partial, ignore_errors=True)
    record.save(place)
    return record


class _Filler:
    """Makes the commits of one task after the other."""

    def __init__(self, out: Path, plan: MergePlan, record: RunRecord) -> None:
        self._out, self._plan, self._record = out, plan, record
        self._selections = Selections(out, record)
        self._shards = ShardMaker(plan.members)
        self._table = TokenTable(out)
        self._attempt = secrets.token_hex(4)

    def ready(self, task: int) -> bool:
        """Whether the sources have the task."""
        return self._plan.joins_corpora or self._plan.members[0].store_of(task) is not None

    @property
    def invalid_in_all(self) -> list[int]:
        """Documents of the result that failed."""
        return sorted({d for commit in CommitLog(self._out).commits()
                       for d, _ in commit.invalid_documents})  # fmt: skip

    def commits(self, task: int, threads: ThreadPoolExecutor) -> list[Commit]:
        """Make and publish a task's shards; the commits that then stand for it."""
        stored = self._selections.task(task).stored
        jobs = []
        for array in self._plan.plans:
            begin, end = stored[group_of(array.path)]
            size = array.shard[array.row_axis]
            for position in range(begin // size, -(-end // size)) if begin < end else ():
                jobs += [(array, index) for index in array.shards_of_rows(position)]
        folder = StorePaths(self._out).attempt(task, self._attempt)

        def make(number: int) -> ShardRecord:
            array, index = jobs[number]
            written = self._shards.make(array, index, folder / str(number))
            return publish_shard(self._out, array, index, written)

        made = list(threads.map(make, range(len(jobs))))
        shutil.rmtree(folder, ignore_errors=True)
        if self._plan.joins_corpora:
            return [self._joined(task, made)]
        return self._same(task, made)

    def _same(self, task: int, made: Sequence[ShardRecord]) -> list[Commit]:
        """The source's own commits, over the files as they lie here."""
        source = self._plan.members[0].store_of(task)
        assert source is not None
        by_path = {shard.path: shard for shard in made}
        return [
            replace(commit, shards=tuple(by_path[shard.path] for shard in commit.shards))
            for commit in source.commits[task]
        ]

    def _joined(self, task: int, made: Sequence[ShardRecord]) -> Commit:
        """One commit for what may come from several tasks of several sources."""
        first = task * self._record.task_rows
        last = first + task_rows(self._record, task)
        nonfinite: Counter[str] = Counter()
        invalid: dict[int, str] = {}
        origins: list[Commit] = []
        for member in self._plan.members:
            for begin, commit in _commits_between(member, first, last):
                origins.append(commit)
                # Counts of a task that is cut here stay with its first row, so that none is lost.
                if begin >= first:
                    nonfinite.update(commit.nonfinite)
                for document, error in commit.invalid_documents:
                    invalid[document + member.first_document] = error
        here = set(self._table.document_spans(first, last)[0].tolist())
        return Commit(
            task=task,
            points=(0, int(self._record.model["layers"])),
            rows=(first, last),
            shards=tuple(sorted(made)),
            nonfinite=dict(sorted(nonfinite.items())),
            invalid_documents=tuple(sorted((d, e) for d, e in invalid.items() if d in here)),
            attempt=self._attempt,
            host=socket.gethostname(),
            pid=os.getpid(),
            hardware=origins[0].hardware,
            rows_run=last - first,
            bytes_read=sum(shard.bytes for shard in made),
        )


def _commits_between(member: Member, first: int, last: int) -> Iterator[tuple[int, Commit]]:
    """First row and commit of each of a member's tasks that has rows in [first, last)."""
    record = member.record
    begin = max(first - member.first_row, 0)
    end = min(last - member.first_row, record.rows)
    if begin >= end:
        return
    for task in range(begin // record.task_rows, -(-end // record.task_rows)):
        source = member.store_of(task)
        assert source is not None
        for commit in source.commits[task]:
            yield member.first_row + task * record.task_rows, commit
