"""The record of a store that joins several corpora."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from blake3 import blake3

from .array_names import group_of
from .arrays import ArrayPlan
from .layout import ACTIVATIONS
from .run_record import GroupLayout, RunRecord
from .tasks import selection_layout


def joined_record(records: Sequence[RunRecord], plans: Sequence[ArrayPlan]) -> RunRecord:
    """The record of several corpora, cut into tasks as long as the longest of theirs.

    The digest of the joined tokens is not known yet: that field is the first corpus's.

    Parameters
    ----------
    records
        Of stores with one model and specification, in order.
    plans
        The arrays of one of them.
    """
    first, rows = records[0], sum(record.rows for record in records)
    task_rows = max(record.task_rows for record in records)
    identities = [record.identity for record in records]
    fields = {**first.identity_fields, "task_rows": task_rows, "merged": ",".join(identities)}
    data = [name for record in records for name in record.specification.get("data", ())]
    text = all(record.specification.get("text", True) for record in records)
    return replace(
        first,
        identity_fields=fields,
        specification={**first.specification, "data": data, "text": text, "merged": identities},
        corpus=_joined_corpus(records),
        rows=rows,
        documents=sum(record.documents for record in records),
        task_rows=task_rows,
        tasks=-(-rows // task_rows),
        rows_run_twice=sum(record.rows_run_twice for record in records),
        groups={
            name: _joined_group(name, records, rows, task_rows, plans) for name in first.groups
        },
    )


def _joined_corpus(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Counts are added; what only the single corpora know is taken from the first."""
    corpora = [dict(record.corpus) for record in records]
    joined: dict[str, Any] = dict(corpora[0])
    for name in ("texts", "rows", "documents", "duplicates", "truncated", "windowed", "skipped"):
        joined[name] = sum(int(corpus.get(name, 0)) for corpus in corpora)
    joined["longest"] = max(int(corpus.get("longest", 0)) for corpus in corpora)
    joined["sources"] = [source for corpus in corpora for source in corpus.get("sources", ())]
    limits = {corpus.get("token_limit") for corpus in corpora}
    joined["token_limit"] = limits.pop() if len(limits) == 1 else None
    keys = [str(corpus.get("key", "")) for corpus in corpora]
    joined["key"] = blake3(",".join(keys).encode()).hexdigest()
    return joined


def _joined_group(
    name: str,
    records: Sequence[RunRecord],
    rows: int,
    task_rows: int,
    plans: Sequence[ArrayPlan],
) -> GroupLayout:
    """Cut as an extraction would cut so many rows."""
    stored = sum(record.groups[name].rows for record in records)
    return selection_layout(stored, rows, task_rows, _row_bytes(name, plans))


def _row_bytes(name: str, plans: Sequence[ArrayPlan]) -> int:
    """Bytes that decide a group's chunks: of a vector, or of a row over all layers or points."""
    plan = next(plan for plan in plans if group_of(plan.path) == name)
    if plan.path.startswith(ACTIVATIONS):
        return plan.shape[-1] * plan.numpy_dtype.itemsize
    return plan.chunk[-2] * plan.numpy_dtype.itemsize


def resized(plan: ArrayPlan, record: RunRecord) -> ArrayPlan:
    """The same array over the rows of another record."""
    layout, axis = record.groups[group_of(plan.path)], plan.row_axis

    def put(lengths: Sequence[int], value: int) -> tuple[int, ...]:
        return tuple(value if i == axis else length for i, length in enumerate(lengths))

    return replace(
        plan,
        shape=put(plan.shape, layout.rows),
        chunk=put(plan.chunk, layout.rows_per_chunk),
        shard=put(plan.shard, layout.rows_per_shard),
    )
