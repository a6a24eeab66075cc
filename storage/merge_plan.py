"""What joining stores would give: decided from their records and commits alone, nothing is written.

Stores of one identity hold the same run over the same corpus, so they are one *member* of the
result, whatever tasks each of them has finished: two halves of a run become a whole one, with the
run's own identity. Members with different corpora follow one another in the order in which they
were named; rows and documents of the later ones are renumbered. Such a store has an identity of its
own, so that no extraction ever continues it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from .array_names import array_paths
from .arrays import ArrayPlan
from .commits import Commit, CommitLog
from .errors import RequestError
from .merge_record import joined_record, resized
from .run_record import RunRecord, differences
from .tasks import Selections

#: Identity fields in which stores that are joined may differ: the corpus, and how it was cut.
OWN_FIELDS = frozenset({"tokens", "task_rows", "merged"})


@dataclass(frozen=True)
class Source:
    """A store that is joined, and what it had committed when it was looked at.

    Attributes
    ----------
    root, record
        The store.
    commits
        The commits of its complete tasks, by task.
    """

    root: Path
    record: RunRecord
    commits: Mapping[int, tuple[Commit, ...]]

    @classmethod
    def of(cls, root: Path) -> Source:
        """Read a store's record and commits.

        Raises
        ------
        RequestError
            There is no store.
        Damage
            A commit cannot be read.
        """
        record, log = RunRecord.load(root), CommitLog(root)
        complete = log.complete_tasks(int(record.model["layers"]))
        return cls(root, record, {task: tuple(log.commits(task)) for task in complete})


@dataclass(frozen=True)
class Member:
    """Stores of one identity, and where their corpus lies in the result.

    Attributes
    ----------
    stores
        In the order in which they were named; the first that has a task gives it.
    first_row, first_document
        What is added to its rows and documents.
    first_stored
        What is added to its stored rows, by group.
    """

    stores: tuple[Source, ...]
    first_row: int
    first_document: int
    first_stored: Mapping[str, int]

    @property
    def record(self) -> RunRecord:
        """The record that its stores share."""
        return self.stores[0].record

    def store_of(self, task: int) -> Source | None:
        """The store that gives a task; None where no store has finished it."""
        return next((store for store in self.stores if task in store.commits), None)

    @property
    def missing(self) -> int:
        """Tasks that no store has finished."""
        return sum(self.store_of(task) is None for task in range(self.record.tasks))

    @cached_property
    def selections(self) -> Selections:
        """Its tasks."""
        return Selections(self.stores[0].root, self.record)


@dataclass(frozen=True)
class MergePlan:
    """What a merge makes.

    Attributes
    ----------
    members
        The corpora, in order.
    record
        The record of the result, but for a digest of the tokens where corpora are joined.
    plans
        Every sharded array of the result.
    """

    members: tuple[Member, ...]
    record: RunRecord
    plans: tuple[ArrayPlan, ...]

    @property
    def joins_corpora(self) -> bool:
        """Whether corpora are joined, rather than tasks of one run."""
        return len(self.members) > 1

    @property
    def roots(self) -> list[Path]:
        """One store of every member."""
        return [member.stores[0].root for member in self.members]


def plan_merge(stores: Sequence[Path], *, allow_mixed_hardware: bool = False) -> MergePlan:
    """Decide what joining these stores gives.

    Raises
    ------
    RequestError
        The stores differ in more than their corpus (says in what), were made on different hardware,
        or lack tasks that no other of them has.
    """
    sources = [Source.of(root) for root in stores]
    _require_alike(sources)
    if not allow_mixed_hardware:
        _require_one_hardware(sources)
    members = _members(sources)
    first = members[0].record
    plans = [ArrayPlan.read(sources[0].root, path) for path in array_paths(sources[0].root)]
    if len(members) == 1:
        return MergePlan(members, first, tuple(plans))
    for member in members:
        if member.missing:
            names = ", ".join(str(store.root) for store in member.stores)
            raise RequestError(
                f"{names}: {member.missing} of {member.record.tasks} tasks are not committed: "
                "finish the extraction, then merge"
            )
    record = joined_record([member.record for member in members], plans)
    return MergePlan(members, record, tuple(resized(plan, record) for plan in plans))


def _require_alike(sources: Sequence[Source]) -> None:
    first = sources[0]
    for other in sources[1:]:
        stored, wanted = (
            {k: v for k, v in s.record.identity_fields.items() if k not in OWN_FIELDS}
            | {"arrays": sorted(array_paths(s.root))}
            for s in (first, other)
        )
        if differing := differences(stored, wanted):
            text = "; ".join(differing).replace("(store: ", "(").replace("asked: ", "")
            raise RequestError(
                f"{first.root} and {other.root} cannot be merged, different are: {text}; merge "
                "stores of one model and specification"
            )


def _require_one_hardware(sources: Sequence[Source]) -> None:
    seen: dict[Path, Mapping[str, Any]] = {}
    for source in sources:
        for commits in source.commits.values():
            seen.setdefault(source.root, commits[0].hardware)
    for root, hardware in list(seen.items())[1:]:
        begun, theirs = next(iter(seen.items()))
        if differing := [f"{k} {v}, {hardware.get(k)}" for k, v in theirs.items()
                         if hardware.get(k) != v]:  # fmt: skip
            raise RequestError(
                f"{begun} and {root} were made on different hardware ({'; '.join(differing)}), "
                "which changes last bits: give --allow-mixed-hardware to merge them all the same"
            )


def _members(sources: Sequence[Source]) -> tuple[Member, ...]:
    by_identity: dict[str, list[Source]] = {}
    for source in sources:
        by_identity.setdefault(source.record.identity, []).append(source)
    members: list[Member] = []
    tokens: dict[Any, Path] = {}
    rows = documents = 0
    stored: dict[str, int] = {}
    for alike in by_identity.values():
        record = alike[0].record
        same = tokens.setdefault(record.identity_fields.get("tokens"), alike[0].root)
        if same != alike[0].root:
            raise RequestError(
                f"{same} and {alike[0].root} hold the same corpus, cut into other tasks: one of "
                "them is enough"
            )
        members.append(Member(tuple(alike), rows, documents, dict(stored)))
        rows, documents = rows + record.rows, documents + record.documents
        for name, group in record.groups.items():
            stored[name] = stored.get(name, 0) + group.rows
    if len(members) == 1:
        return tuple(members)
    return tuple(
        replace(m, first_stored={name: m.first_stored.get(name, 0) for name in m.record.groups})
        for m in members
    )
