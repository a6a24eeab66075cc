"""What a store is cut down to: its new record, and where each of its files goes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .array_names import ARRAYS, GROUPS, SUBLAYERS, group_of
from .arrays import ArrayPlan
from .errors import RequestError
from .layout import ACTIVATIONS
from .run_record import RunRecord
from .status import status

#: What may be dropped, and what that is.
DROPPABLE = {
    "activations": "residual stream and sublayers' outputs",
    "residual": "residual stream",
    "sublayers": "what attention and the MLP add",
    "statistics": "norms, norm ratios and cosines",
    "lens": "lens values",
    "text": "documents' text and tokens' strings; the corpus's own fields stay",
    "head": "final norm and unembedding",
}
_RESIDUAL = f"{ACTIVATIONS}/residual"


@dataclass(frozen=True)
class TrimPlan:
    """A smaller store.

    Attributes
    ----------
    source, before
        The store as it is, and its record.
    record
        The record of the smaller one. Its identity is that of an extraction that was asked for no
        more than what is kept.
    dropped
        Arrays that go, as paths below the store.
    text, head
        Whether these are kept.
    """

    source: Path
    before: RunRecord
    record: RunRecord
    dropped: frozenset[str]
    text: bool
    head: bool

    @property
    def changes(self) -> bool:
        """Whether anything goes at all."""
        return self.before.specification != self.record.specification

    def shard(self, path: str) -> str | None:
        """Where a shard lies in the smaller store; None where it goes."""
        array, _, place = path.partition("/c/")
        if array in self.dropped:
            return None
        if array != _RESIDUAL:
            return path
        number, _, rest = place.partition("/")
        point = self.before.points[int(number)]
        if point not in self.record.points:
            return None
        return f"{array}/c/{self.record.points.index(point)}/{rest}"

    def array(self, plan: ArrayPlan) -> ArrayPlan:
        """An array of the store as it is in the smaller one."""
        if plan.path != _RESIDUAL:
            return plan
        return replace(plan, shape=(len(self.record.points), *plan.shape[1:]))


def plan_trim(source: Path, points: tuple[int, ...] | None, drop: Collection[str]) -> TrimPlan:
    """Decide what of a store is kept.

    Parameters
    ----------
    points
        Points of the residual stream to keep; None keeps all.
    drop
        Names of ``DROPPABLE``. What the store does not have may be named.

    Raises
    ------
    RequestError
        There is no store, it is not complete, a point is not stored, a name is unknown, or nothing
        would be left.
    """
    before = RunRecord.load(source)
    if (state := status(source)).state != "complete":
        raise RequestError(f"{source} is {state.sentence}: finish the extraction, then trim")
    if unknown := set(drop) - set(DROPPABLE):
        raise RequestError(f"--drop {min(unknown)}: write one of {', '.join(DROPPABLE)}")
    stored = ", ".join(map(str, before.points)) or "none"
    if points is not None and (missing := set(points) - set(before.points)):
        raise RequestError(f"--points {min(missing)}: is not stored; stored points: {stored}")
    no_residual = bool({"activations", "residual"} & set(drop))
    no_sublayers = bool({"activations", "sublayers"} & set(drop))
    dropped = {f"{GROUPS[name]}/{array}" for name in ("statistics", "lens") if name in drop
               for array in ARRAYS[name]}  # fmt: skip
    dropped |= {_RESIDUAL} if no_residual else set()
    dropped |= {f"{ACTIVATIONS}/{name}" for name in SUBLAYERS} if no_sublayers else set()
    kept = () if no_residual else before.points if points is None else tuple(sorted(set(points)))
    record = _trimmed(source, before, kept, dropped, drop)
    if not record.groups:
        raise RequestError(f"{source}: no array would be left: drop less, or delete the store")
    text, head = (bool(record.specification.get(name, True)) for name in ("text", "head"))
    return TrimPlan(source, before, record, frozenset(dropped), text, head)


def _trimmed(
    source: Path,
    before: RunRecord,
    points: tuple[int, ...],
    dropped: Collection[str],
    drop: Collection[str],
) -> RunRecord:
    """The record with what goes taken out, as if it had never been asked for."""
    arrays = {
        f"{folder}/{name}"
        for group, folder in GROUPS.items()
        for name in ARRAYS[group]
        if (source / folder / name).is_dir()
    } - set(dropped)
    groups = {group_of(path) for path in arrays}
    fields, given = dict(before.identity_fields), dict(before.specification)
    changed: dict[str, Any] = {"points": ",".join(map(str, points))}
    if "activations" in drop or "sublayers" in drop:
        changed["sublayers"] = False
    if "statistics" in drop:
        changed["statistics"] = False
    if "lens" in drop:
        changed["lens_rows"] = "none"
    fields |= {name: value for name, value in changed.items() if name in fields}
    if points == before.points:
        del changed["points"]
    given |= changed | {name: False for name in ("text", "head") if name in drop}
    record = replace(
        before,
        identity_fields=fields,
        specification=given,
        points=points,
        groups={name: layout for name, layout in before.groups.items() if name in groups},
    )
    return record if record.identity == before.identity else _noted(record, before)


def _noted(record: RunRecord, before: RunRecord) -> RunRecord:
    """With the identities that what was made of the store so far names as its input."""
    earlier: Mapping[str, Any] = before.specification
    identities = [*earlier.get("trimmed_from", ()), before.identity]
    return replace(record, specification={**record.specification, "trimmed_from": identities})
