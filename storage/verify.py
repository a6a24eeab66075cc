"""Is every byte that was committed still there, every row once, every token in its document?

Reads the whole store once, a piece at a time; several files at once. With ``repair``, what fails is
removed together with its commit, so that running the extraction again fills the gap; nothing that
is sound is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from blake3 import blake3

from .array_names import GROUPS, array_paths, group_of
from .arrays import ArrayPlan
from .commits import Commit, CommitLog, digest_file
from .errors import Damage, RequestError
from .head import Head
from .layout import StorePaths
from .run_record import RunRecord
from .status import Status, status, task_rows
from .tasks import Selections
from .token_table import TokenTable

#: Rows of the token table that are checked at a time.
_TOKEN_ROWS = 1 << 18
_READERS = 4


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Attributes
    ----------
    text
        What, where and how to mend it.
    commit
        The commit that must be taken back for it, if any.
    files
        Files that must be removed for it.
    """

    text: str
    commit: Path | None = None
    files: tuple[Path, ...] = ()


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
    problems = [*_check_plan(root, record), *_check_tokens(root, record)]
    problems += _check_commits(root, record, on_progress)
    if repair:
        _repair(root, problems)
    found = status(root)
    state = "damaged" if problems and not _repaired(root, problems, repair) else found.state
    return replace(found, state=state, problems=[problem.text for problem in problems])


def _check_plan(root: Path, record: RunRecord) -> Iterator[Problem]:
    """Metadata and coordinates that the driver wrote before the first task."""
    paths = StorePaths(root)
    for plan_path in array_paths(root):
        try:
            ArrayPlan.read(root, plan_path)
        except (Damage, RequestError, OSError) as error:
            yield Problem(
                f"{plan_path}: metadata cannot be read ({error}): extract into a new store"
            )
    try:
        selections = Selections(root, record)
        for name, group in record.groups.items():
            rows = selections.stored_rows(name, 0, group.rows)
            if len(rows) != group.rows or np.any(np.diff(rows) <= 0):
                yield Problem(
                    f"{GROUPS[name]}/row: rows are not ascending: extract into a new store"
                )
    except (Damage, RequestError, OSError, ValueError, KeyError) as error:
        yield Problem(f"row coordinates cannot be read ({error}): extract into a new store")
    if record.specification["head"]:
        try:
            Head.load(root)
        except (Damage, RequestError, OSError, ValueError) as error:
            yield Problem(f"{paths.head}: {error}: extract into a new store")


def _check_tokens(root: Path, record: RunRecord) -> Iterator[Problem]:
    """Every row once, and every document's digest over its own tokens."""
    mend = "extract into a new store"
    try:
        table = TokenTable(root)
        if table.rows != record.rows or table.documents != record.documents:
            yield Problem(
                f"tokens.parquet has {table.rows} rows of {table.documents} documents, run.json "
                f"says {record.rows} of {record.documents}: {mend}"
            )
            return
        documents, starts, lengths = table.document_spans()
        digests = table.read_documents(["digest"]).column(0)
        for first in range(0, len(documents), 4096):
            part = slice(first, first + 4096)
            begin, end = int(starts[part][0]), int(starts[part][-1] + lengths[part][-1])
            tokens = table.read_rows(begin, end, ["row", "document", "position", "token_id"])
            row, owner, position, ids = (tokens.column(i).to_numpy() for i in range(4))
            expected = np.repeat(documents[part], lengths[part])
            places = row - np.repeat(starts[part], lengths[part])
            if not (
                np.array_equal(row, np.arange(begin, end))
                and np.array_equal(owner, expected)
                and np.array_equal(position, places)
            ):
                yield Problem(f"tokens.parquet: rows {begin} to {end - 1} are out of order: {mend}")
                continue
            for number, start, length in zip(
                documents[part], starts[part], lengths[part], strict=True
            ):
                own = np.ascontiguousarray(ids[start - begin : start - begin + length], "<i4")
                if blake3(own.tobytes()).hexdigest(length=16) != digests[int(number)].as_py():
                    yield Problem(f"document {number}: tokens differ from its digest: {mend}")
    except (Damage, RequestError, OSError, ValueError) as error:
        yield Problem(f"token tables cannot be read ({error}): {mend}")


def _check_commits(
    root: Path, record: RunRecord, on_progress: Callable[[int, int], None]
) -> list[Problem]:
    log = CommitLog(root)
    files = list(log.files())
    problems: list[Problem] = []
    owners: dict[str, Path] = {}
    with ThreadPoolExecutor(_READERS) as readers:
        for number, path in enumerate(files):
            on_progress(number, len(files))
            try:
                commit = Commit.load(path)
            except Damage as error:
                problems.append(Problem(str(error), path))
                continue
            problems += _check_commit(root, record, path, commit, readers)
            for shard in commit.shards:
                if owners.setdefault(shard.path, path) != path:
                    text = f"{shard.path} belongs to two commits, {owners[shard.path]} and {path}"
                    problems.append(Problem(f"{text}: run verify --repair", path))
    on_progress(len(files), len(files))
    return problems


def _check_commit(
    root: Path, record: RunRecord, path: Path, commit: Commit, readers: ThreadPoolExecutor
) -> Iterator[Problem]:
    mend = "run depthscope verify --repair, then the same extract again"
    task = commit.task
    first = task * record.task_rows
    if not 0 <= task < record.tasks or commit.rows != (first, first + task_rows(record, task)):
        yield Problem(f"{path}: task {task} does not own rows {commit.rows}: {mend}", path)
    if expected := _expected_shards(root, record, commit) - {shard.path for shard in commit.shards}:
        yield Problem(f"{path}: names no {sorted(expected)[0]}: {mend}", path)
    results = readers.map(lambda shard: _digest(root / shard.path), commit.shards)
    for shard, digest in zip(commit.shards, results, strict=True):
        if digest == shard.digest:
            continue
        what = "is missing" if digest is None else "differs from its digest"
        yield Problem(f"{shard.path} {what} (task {task}): {mend}", path, (root / shard.path,))


def _expected_shards(root: Path, record: RunRecord, commit: Commit) -> set[str]:
    """Files that a whole task must have committed."""
    if commit.points != (0, int(record.model["layers"])):
        return set()
    stored = Selections(root, record).task(commit.task).stored
    expected: set[str] = set()
    for path in array_paths(root):
        name = group_of(path)
        first, last = stored[name]
        plan, shard_rows = ArrayPlan.read(root, path), record.groups[name].rows_per_shard
        # A task may own no row at all of a group that stores a selection.
        shards = range(first // shard_rows, -(-last // shard_rows)) if first < last else ()
        for shard in shards:
            expected.update(plan.shard_file(index) for index in plan.shards_of_rows(shard))
    return expected


def _digest(path: Path) -> str | None:
    try:
        return digest_file(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"unreadable: {error}"


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
