"""The intervention sweeps of a store: how far each has come, and whether its bytes are sound.

As for an extraction, a commit names exactly the shards of its task, with their digests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .commits import Commit, digest_file
from .effects import EffectsRecord, effects_log
from .effects_arrays import effects_plans, shard_index
from .errors import Damage, RequestError
from .layout import StorePaths
from .problem import Problem

_MEND = "run depthscope verify --repair, then the same intervene again"


@dataclass(frozen=True)
class EffectsStatus:
    """How far a sweep has come.

    Attributes
    ----------
    tasks_total, tasks_committed
        Tasks there are, and those that are committed.
    """

    tasks_total: int
    tasks_committed: int


def effects_names(root: Path) -> list[str]:
    """Names of all sweeps that were laid out, sorted."""
    return sorted(path.stem for path in StorePaths(root).effects("x").parent.glob("*.json"))


def effects_status(root: Path) -> dict[str, EffectsStatus]:
    """How far every sweep has come, by name; reads names of commits only."""
    found = {}
    for name in effects_names(root):
        try:
            record = EffectsRecord.load(root, name)
        except (ValueError, KeyError, TypeError):
            continue  # `check_effects` says so.
        done = effects_log(root, name).complete_tasks(record.layers)
        found[name] = EffectsStatus(record.tasks, len(done))
    return found


def check_effects(root: Path) -> Iterator[Problem]:
    """Check every commit of every sweep and the files it names."""
    for name in effects_names(root):
        path = EffectsRecord.path(root, name)
        try:
            record = EffectsRecord.load(root, name)
        except (ValueError, KeyError, TypeError, RequestError) as error:
            yield Problem(f"{path} cannot be read ({error}): remove it and {name}.zarr, then run "
                          "the same intervene again")  # fmt: skip
            continue
        for file in effects_log(root, name).files():
            yield from _check(root, record, file)


def _check(root: Path, record: EffectsRecord, path: Path) -> Iterator[Problem]:
    try:
        commit = Commit.load(path)
    except Damage:
        yield Problem(f"{path} is no commit: {_MEND}", path)
        return
    if (
        not 0 <= commit.task < record.tasks
        or path.parent != effects_log(root, record.name).folder / f"{commit.task:06d}"
    ):
        yield Problem(f"{path}: effects {record.name} have no such task: {_MEND}", path)
        return
    task = record.task(commit.task)
    own = {
        plan.shard_file(shard_index(record, task, plan)) for plan in effects_plans(record).values()
    }
    if {shard.path for shard in commit.shards} != own:
        yield Problem(f"{path} does not name the shards of its task: {_MEND}", path)
        return
    for shard in commit.shards:
        file = root / shard.path
        try:
            what = "" if digest_file(file) == shard.digest else "differs from its digest"
        except FileNotFoundError:
            what = "is missing"
        except OSError as error:
            what = f"is unreadable ({error})"
        if what:
            yield Problem(f"{shard.path} {what} ({task.name}): {_MEND}", path, (file,))
