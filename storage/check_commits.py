"""Does every commit name its own shards, and are their bytes what it says?

A commit names exactly the shards of its task and points (`coverage.shards_of`). Commits of one task
may overlap: they must then agree, so that a shard is named with one digest. Cost: every committed
byte is read once, several files at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from .commits import Commit, CommitLog, ShardRecord, digest_file
from .coverage import Coverage
from .errors import Damage
from .layout import StorePaths
from .problem import Problem
from .run_record import RunRecord
from .status import task_rows

_READERS = 4
_MEND = "run depthscope verify --repair, then the same extract or merge again"


def check_commits(
    root: Path,
    record: RunRecord,
    coverage: Coverage | None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Problem]:
    """Check every commit of a store and the files it names.

    Parameters
    ----------
    coverage
        Which shards belong to which commit; None where the store's plan cannot be read, so that
        only the digests are checked and no file is to be removed.
    on_progress
        Called with commits checked so far and commits in all.
    """
    files = list(CommitLog(root).files())
    problems: list[Problem] = []
    done = 0
    with ThreadPoolExecutor(_READERS) as readers:
        for _, of_task in groupby(files, key=lambda path: path.parent):
            check = _TaskCheck(root, record, coverage, readers)
            for path in of_task:
                on_progress(done, len(files))
                problems += check.commit(path)
                done += 1
            problems += check.digests()
    on_progress(len(files), len(files))
    return problems


class _TaskCheck:
    """The commits of one task: each file they name is read once, however many name it."""

    def __init__(
        self,
        root: Path,
        record: RunRecord,
        coverage: Coverage | None,
        readers: ThreadPoolExecutor,
    ) -> None:
        self.root, self.record, self.coverage, self.readers = root, record, coverage, readers
        self._found: dict[str, str | None] = {}
        self._failed: list[tuple[Path, int, ShardRecord]] = []
        self._sound: set[str] = set()
        self._own: set[str] = set()

    def commit(self, path: Path) -> Iterator[Problem]:
        """Check what a commit says, and read what it names."""
        try:
            commit = Commit.load(path)
        except Damage as error:
            yield Problem(str(error), path)
            return
        named = {shard.path for shard in commit.shards}
        if wrong := self._place(path, commit):
            yield Problem(f"{path}: {wrong}: {_MEND}", path)
        elif self.coverage is not None:
            own = self.coverage.shards(commit.task, *commit.points)
            self._own |= own
            if missing := own - named:
                yield Problem(f"{path}: names no {min(missing)}: {_MEND}", path)
            if foreign := named - own:
                yield Problem(f"{path}: {min(foreign)} is none of its shards: {_MEND}", path)
        self._read(path, commit.task, commit.shards)

    def _place(self, path: Path, commit: Commit) -> str:
        """What is wrong with the task, rows and points that a commit names; nothing if empty."""
        task, (first, last) = commit.task, commit.points
        start, layers = task * self.record.task_rows, int(self.record.model["layers"])
        if not 0 <= task < self.record.tasks or commit.rows != (
            start,
            start + task_rows(self.record, task),
        ):
            return f"task {task} does not own rows {commit.rows}"
        if not 0 <= first <= last <= layers:
            return f"the model has no points {first} to {last}"
        if path != StorePaths(self.root).commit(task, first, last):
            return f"it is the commit of task {task}, points {first} to {last}"
        return ""

    def _read(self, path: Path, task: int, shards: Sequence[ShardRecord]) -> None:
        new = [shard.path for shard in shards if shard.path not in self._found]
        digests = self.readers.map(lambda name: _digest(self.root / name), new)
        self._found.update(zip(new, digests, strict=True))
        for shard in shards:
            if self._found[shard.path] == shard.digest:
                self._sound.add(shard.path)
            else:
                self._failed.append((path, task, shard))

    def digests(self) -> Iterator[Problem]:
        """Files that are not what a commit says; after the last commit of the task."""
        for path, task, shard in self._failed:
            if shard.path in self._sound:
                # What another commit vouches for stays.
                text = f"{path}: another commit names {shard.path} with its true digest"
                yield Problem(f"{text}: {_MEND}", path)
                continue
            what = "is missing" if self._found[shard.path] is None else "differs from its digest"
            files = (self.root / shard.path,) if shard.path in self._own else ()
            yield Problem(f"{shard.path} {what} (task {task}): {_MEND}", path, files)


def _digest(path: Path) -> str | None:
    try:
        return digest_file(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"unreadable: {error}"
