"""Cutting a store down to chosen points and arrays, into a new store or in its own place.

The smaller store is laid out whole under a temporary name, then filled task by task through the
commit protocol: each commit is written anew over the files that are kept. In place the files are
hard links, so no byte is copied, and at the end the smaller store and the whole one change names in
one step; only then is anything deleted. Whoever opens the store at any instant sees the one or the
other, and a trim that was killed at any point is finished by the same command.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .array_names import GROUPS, array_paths
from .arrays import ArrayPlan, create_array
from .atomic import publish, write_json
from .commits import Commit, CommitLog, ShardRecord
from .coordinates import create_coordinate
from .errors import Damage, RequestError, Stopped, WorkFailed
from .layout import ACTIVATIONS, STATISTICS, StorePaths
from .merge_frame import copy_file
from .merge_shards import copy_digested
from .placing import placed
from .run_record import RunRecord, differences
from .status import task_rows
from .table_files import ROWS_PER_GROUP, flush, open_writer
from .trim_plan import TrimPlan

#: Folders and files of a store that are written anew, or hold nothing that lasts.
_NOT_CARRIED = ("run.json", "driver.lock", "partial", "carried", "commits")


def lay_out_trim(out: Path, plan: TrimPlan, *, link: bool = False) -> None:
    """Make the store that a trim fills, or check that the one that exists is this very one.

    Parameters
    ----------
    link
        Make hard links rather than copies.

    Raises
    ------
    RequestError
        ``out`` holds something else, or cannot be written; nothing is left behind.
    """
    if StorePaths(out).run.exists():
        found = RunRecord.load(out)
        if differing := differences(
            {**found.specification, "identity": found.identity},
            {**plan.record.specification, "identity": plan.record.identity},
        ):
            raise RequestError(
                f"{out} holds another store; different are: {'; '.join(differing)}. Choose another "
                "place"
            )
        return
    with placed(out) as place:
        _carry(plan, place, link)
        for path in array_paths(plan.source):
            if path not in plan.dropped:
                create_array(place, plan.array(ArrayPlan.read(plan.source, path)))
        if plan.record.points:
            points = np.array(plan.record.points, np.int64)
            create_coordinate(place, f"{ACTIVATIONS}/point", points, "point")
        if not plan.text:
            _without_text(plan.source, place)
        if not plan.head:
            model = plan.record.model
            names = {"checkpoint": model.get("folder"), "weights_digest": model["weights_digest"]}
            write_json(StorePaths(place).head_config, names)
        plan.record.save(place)


def trim(
    out: Path,
    plan: TrimPlan,
    *,
    link: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], str | None] = lambda: None,
) -> int:
    """Fill a store that `lay_out_trim` made; the bytes of shards that it holds at the end.

    Raises
    ------
    Damage
        A file of the source is missing or, where files are copied, differs from its digest.
    Stopped
        ``stop`` said so; the same call resumes.
    """
    record, log = plan.record, CommitLog(out)
    log.drop_partial()
    folder = StorePaths(out).partial / f"trim-{secrets.token_hex(4)}"
    done = {(path.parent.name, path.name) for path in log.files()}
    rows = size = 0
    for file in CommitLog(plan.source).files():
        commit = Commit.load(file)
        kept = [(shard, new) for shard in commit.shards if (new := plan.shard(shard.path))]
        size += sum(shard.bytes for shard, _ in kept)
        if (file.parent.name, file.name) not in done:
            if reason := stop():
                raise Stopped(reason)
            folder.mkdir(parents=True, exist_ok=True)
            shards = tuple(_move(plan.source, out, folder, *pair, link) for pair in kept)
            log.add(replace(commit, shards=shards))
        if commit.points[1] == int(record.model["layers"]):
            rows += task_rows(record, commit.task)
        on_progress(rows, record.rows)
    log.drop_partial()
    return size


def _move(
    source: Path, out: Path, folder: Path, shard: ShardRecord, path: str, link: bool
) -> ShardRecord:
    """Link or copy one shard to its new place, unless it is there."""
    temporary = folder / secrets.token_hex(6)
    if (out / path).exists():
        # Of a commit that overlaps with this one, or of a trim that was killed before its commit:
        # both publish whole files only.
        return shard._replace(path=path)
    try:
        if link:
            os.link(source / shard.path, temporary)
        elif copy_digested(source / shard.path, temporary)[0] != shard.digest:
            raise Damage(
                f"{source / shard.path}: differs from its digest; run: depthscope verify {source}"
            )
    except FileNotFoundError:
        raise Damage(
            f"{source / shard.path}: is missing; run: depthscope verify {source}"
        ) from None
    except OSError as error:
        raise WorkFailed(f"{source / shard.path}: {error.strerror or error}") from error
    publish(temporary, out / path)
    return shard._replace(path=path)


def _carry(plan: TrimPlan, place: Path, link: bool) -> None:
    """Everything that is neither a shard nor said anew: tables, head, groups, effects, results."""
    arrays = set(array_paths(plan.source)) | {f"{ACTIVATIONS}/point"}
    gone = arrays | set(_gone_folders(plan)) | set(_NOT_CARRIED)
    if not plan.text:
        gone |= {StorePaths(place).documents.name, StorePaths(place).tokens.name}
    if not plan.head:
        gone |= {StorePaths(place).head.name, StorePaths(place).head_config.name}
    for file in _files(plan.source, gone):
        target = place / file
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            os.link(plan.source / file, target)
        else:
            copy_file(plan.source / file, target)


def _gone_folders(plan: TrimPlan) -> Iterator[str]:
    """Groups, and coordinates of groups, that no array is left for."""
    before, after = set(plan.before.groups), set(plan.record.groups)
    for name in before - after:
        if name == "statistics" and "lens" in after:
            # The lens values lie inside this group.
            own = (child.name for child in (plan.source / STATISTICS).iterdir() if child.is_dir())
            yield from (f"{STATISTICS}/{name}" for name in own if name != "lens")
        else:
            yield GROUPS[name]
    if not after & {"statistics", "lens"}:
        yield STATISTICS
    if f"{ACTIVATIONS}/attention_output" in plan.dropped:
        yield f"{ACTIVATIONS}/layer"


def _files(root: Path, gone: set[str]) -> Iterator[str]:
    """Paths of all files below a folder, without what has or lies below one of these names."""
    waiting = [""]
    while waiting:
        below = waiting.pop()
        with os.scandir(root / below) as entries:
            for entry in entries:
                path = f"{below}/{entry.name}" if below else entry.name
                if path in gone:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif not entry.name.startswith("."):
                    yield path
    effects = root / "commits" / "effects"
    for file in effects.rglob("*.json"):
        yield str(file.relative_to(root))


def _without_text(source: Path, place: Path) -> None:
    """The tables without the documents' text and the tokens' strings."""
    paths, targets = StorePaths(source), StorePaths(place)
    for name in ("documents", "tokens"):
        with pq.ParquetFile(getattr(paths, name)) as file:
            names = [field for field in file.schema_arrow.names if field != "text"]
            schema = pa.schema([file.schema_arrow.field(field) for field in names])
            with open_writer(getattr(targets, name), schema) as out:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group, columns=names)
                    if "token" in names:
                        nothing = pa.nulls(len(table), pa.string())
                        table = table.set_column(names.index("token"), "token", nothing)
                    out.write_table(table, row_group_size=ROWS_PER_GROUP)
        flush(getattr(targets, name))
