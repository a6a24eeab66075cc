"""Which documents a task runs, and how far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from depthscope.storage.tasks import Selections, Task
from depthscope.storage.token_table import TokenTable

from .batches import Piece
from .placement import StoredRange


def stored_ranges(selections: Selections, task: Task) -> Mapping[str, StoredRange]:
    """The stored rows that the task owns, by group."""
    record = selections.record
    return {
        name: StoredRange(
            first,
            last,
            None
            if record.groups[name].rows == record.rows
            else selections.stored_rows(name, first, last),
        )
        for name, (first, last) in task.stored.items()
    }


def needed_pieces(root: Path, task: Task, ranges: Sequence[StoredRange]) -> list[Piece]:
    """Every document with a row the task needs, from its start to the last such row.

    Rows of the task's own range come first; documents beyond it, which a selection's last shard
    needs, follow in the order of the corpus.
    """
    table = TokenTable(root)
    pieces = _in_range(table, *task.rows)
    beyond = [
        stored.rows[stored.rows >= task.rows[1]] for stored in ranges if stored.rows is not None
    ]
    rows = np.unique(np.concatenate([*beyond, np.empty(0, np.int64)]))
    if len(rows):
        pieces = _extend(table, pieces, rows)
    return pieces


def _in_range(table: TokenTable, first: int, last: int) -> list[Piece]:
    documents, starts, lengths = table.document_spans(first, last)
    if not len(documents):
        return []
    begin = int(starts[0])
    # One token more than is run, so that the last row knows what really follows it.
    ids = table.token_ids(begin, min(last + 1, table.rows))
    pieces = []
    for document, start, length in zip(documents, starts, lengths, strict=True):
        count = min(int(length), last - int(start))
        offset = int(start) - begin
        following = int(ids[offset + count]) if count < length else -1
        pieces.append(
            Piece(int(document), int(start), ids[offset : offset + count], next_id=following)
        )
    return [piece for piece in pieces if piece.length]


def _extend(table: TokenTable, pieces: list[Piece], rows: np.ndarray) -> list[Piece]:
    documents, starts, lengths = table.document_spans(int(rows[0]), int(rows[-1]) + 1)
    upto = np.searchsorted(rows, starts + lengths) - 1
    wanted = (upto >= 0) & (rows[np.maximum(upto, 0)] >= starts)
    by_document = {piece.document: piece for piece in pieces}
    for number in np.flatnonzero(wanted):
        start = int(starts[number])
        by_document[int(documents[number])] = _in_range(table, start, int(rows[upto[number]]) + 1)[
            -1
        ]
    return [by_document[document] for document in sorted(by_document)]
