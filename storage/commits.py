"""The commit protocol: what is committed is whole, checksummed, and never written again.

A task's shards are written under names of the attempt's own, flushed, and *published* under their
real names without ever replacing a file; last of all the *commit*, created exclusively, names them
with their digests. So

* a reader who follows the commits sees whole tasks only;
* an attempt that wakes up after its task was done elsewhere finds every name taken, and harms
  nothing;
* a shard that was published by an attempt that died before its commit is checked and adopted by the
  next one, or removed when it is unsound.

Cost: one ``link`` and one flushed folder entry per shard, one small file per task.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from .arrays import ArrayPlan
from .atomic import create_json, publish
from .errors import Damage
from .layout import StorePaths
from .shard_reader import check_shard
from .shard_writer import WrittenShard
from .spans import Spans, covers, joined

#: Bytes read at a time when a file is digested.
_READ = 1 << 22

#: Name of a commit's file: its first and its last point.
_NAME = re.compile(r"(\d+)-(\d+)\.json")


class ShardRecord(NamedTuple):
    """A committed shard: its path below the store, the digest of its bytes, and their number."""

    path: str
    digest: str
    bytes: int


@dataclass(frozen=True)
class Commit:
    """One finished task for one range of points.

    Attributes
    ----------
    task, points, rows
        Which task, which points (both ends included), which corpus rows (end excluded).
    shards
        Every file that belongs to it.
    nonfinite
        Non-finite values by place (``residual/12``); empty when all are finite.
    invalid_documents
        Documents that failed and were kept as NaN: number and error of each.
    attempt, host, pid, node
        Who did it; ``node`` is the engine's name of the node, empty where it has none.
    hardware
        Device kind, threads and libraries that decide the last bit of every number.
    timings
        Seconds spent on compute, copy, encode, write and wait; start and end times.
    rows_run, bytes_read
        Rows that went through the model, and bytes that the process has read since its commit
        before (a worker's first commit: since before it loaded the weights).
    """

    task: int
    points: tuple[int, int]
    rows: tuple[int, int]
    shards: tuple[ShardRecord, ...]
    nonfinite: Mapping[str, int] = field(default_factory=dict)
    invalid_documents: tuple[tuple[int, str], ...] = ()
    attempt: str = ""
    host: str = ""
    pid: int = 0
    node: str = ""
    hardware: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    rows_run: int = 0
    bytes_read: int = 0

    @classmethod
    def load(cls, path: Path) -> Commit:
        """Read a commit.

        Raises
        ------
        Damage
            The file is no commit.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            content["shards"] = tuple(ShardRecord(*shard) for shard in content["shards"])
            content["points"] = (int(content["points"][0]), int(content["points"][1]))
            content["rows"] = (int(content["rows"][0]), int(content["rows"][1]))
            content["invalid_documents"] = tuple(
                (int(document), str(error)) for document, error in content["invalid_documents"]
            )
            return cls(**content)
        except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise Damage(
                f"{path} is no commit ({error}): run depthscope verify --repair, then extract again"
            ) from error


def publish_shard(
    root: Path, plan: ArrayPlan, index: tuple[int, ...], shard: WrittenShard
) -> ShardRecord:
    """Give a finished shard its real name, or adopt the sound one that is there already.

    Two sound files under one name hold the same rows of the same run: either may stand.

    Raises
    ------
    Damage
        The name is taken by an unsound file that another attempt keeps putting back.
    """
    final = root / shard.path
    if publish(shard.temporary, final):
        return ShardRecord(shard.path, shard.digest, shard.bytes)
    try:
        check_shard(root, plan, index)
    except Damage:
        final.unlink(missing_ok=True)
        raise
    return ShardRecord(shard.path, digest_file(final), final.stat().st_size)


def digest_file(path: Path) -> str:
    """blake3 of a file's bytes, read in pieces."""
    digest = blake3()
    with path.open("rb") as file:
        while piece := file.read(_READ):
            digest.update(piece)
    return digest.hexdigest()


class CommitLog:
    """The commits of one store's extraction, or in a folder of their own those of a sweep.

    Parameters
    ----------
    root
        The store.
    folder
        Where the commits lie; None for the extraction's.
    """

    def __init__(self, root: Path, folder: Path | None = None) -> None:
        self.root = root
        self.paths = StorePaths(root)
        self.folder = folder or self.paths.commits

    def add(self, commit: Commit) -> bool:
        """Create a commit; False when the task was committed by another attempt meanwhile."""
        content = asdict(commit)
        content["shards"] = [list(shard) for shard in commit.shards]
        first, last = commit.points
        return create_json(self._task(commit.task) / f"{first}-{last}.json", content)

    def _task(self, task: int) -> Path:
        return self.folder / f"{task:06d}"

    def files(self, task: int | None = None) -> Iterator[Path]:
        """The commits' files, of one task or of all, in order."""
        folders = [self._task(task)] if task is not None else _sorted_folders(self.folder)
        for folder in folders:
            if folder.is_dir():
                found = (path for path in folder.iterdir() if _NAME.fullmatch(path.name))
                yield from sorted(found, key=_points)

    def commits(self, task: int | None = None) -> Iterator[Commit]:
        """The commits, of one task or of all, in the order of tasks and points."""
        return (Commit.load(path) for path in self.files(task))

    def reached(self, task: int) -> int:
        """How many points of a task, from 0 on, its commits cover; reads names only."""
        spans = joined(_points(path) for path in self.files(task))
        return spans[0][1] + 1 if spans and spans[0][0] == 0 else 0

    def spans(self) -> Mapping[int, Spans]:
        """The committed points of every task that has any, by task, ascending; reads names only."""
        tasks = groupby(self.files(), key=lambda path: int(path.parent.name))
        return {task: joined(map(_points, files)) for task, files in tasks}

    def complete_tasks(self, last_point: int) -> list[int]:
        """Tasks whose commits cover points 0 to ``last_point``; reads names only."""
        return [task for task, spans in self.spans().items() if covers(spans, 0, last_point)]

    def remove(self, path: Path) -> None:
        """Take a commit back, so that its task is done again."""
        path.unlink(missing_ok=True)

    def drop_partial(self) -> None:
        """Remove what dead attempts left behind; a live one merely fails and is tried again."""
        shutil.rmtree(self.paths.partial, ignore_errors=True)


def committed_ranges(
    borders: Mapping[int, tuple[int, int]], tasks: Iterable[int]
) -> list[tuple[int, int]]:
    """Join the tasks' ranges of stored rows (end excluded) into as few ranges as there are."""
    ranges: list[tuple[int, int]] = []
    for task in sorted(tasks):
        first, last = borders[task]
        if first == last:
            continue
        if ranges and ranges[-1][1] == first:
            ranges[-1] = (ranges[-1][0], last)
        else:
            ranges.append((first, last))
    return ranges


def invalid_documents(root: Path) -> dict[int, str]:
    """Documents that failed, with their errors, from every commit."""
    found: dict[int, str] = {}
    for commit in CommitLog(root).commits():
        found.update(dict(commit.invalid_documents))
    return found


def _points(path: Path) -> tuple[int, int]:
    """First and last point of a commit, from its file's name."""
    first, last = path.stem.split("-")
    return int(first), int(last)


def _sorted_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.isdigit())
    return [folder / name for name in names]
