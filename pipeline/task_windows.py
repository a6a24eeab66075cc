"""A task's documents as windows of micro-batches: the same ones on every machine and schedule.

Documents with a token id that has no embedding are known before anything runs, so they are taken
out here, and every schedule sees the same batches without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from depthscope.storage.tasks import Task

from .batches import Batch, Piece, micro_batches, windows
from .equipment import Equipment
from .faults import PoisonedDocumentError, poisoned_ids
from .needs import needed_pieces
from .placement import StoredRange

#: About how many bytes of activations (as float32) are collected before they are written. The
#: windows that follow decide how documents meet in a batch, so this is no setting of a machine's.
WINDOW_BYTES = 1 << 30


@dataclass(frozen=True)
class Window:
    """Documents that are collected together.

    Attributes
    ----------
    pieces
        All of them, those that fail included.
    batches
        Micro-batches of those that do not.
    poisoned
        Number and error of each that fails.
    """

    pieces: Sequence[Piece]
    batches: Sequence[Batch]
    poisoned: dict[int, str]


def task_windows(
    equipment: Equipment, task: Task, ranges: Sequence[StoredRange]
) -> Iterator[Window]:
    """The windows of a task, in order.

    Parameters
    ----------
    ranges
        The stored rows that the task owns in each group.

    Raises
    ------
    PoisonedDocumentError
        A document has a token id without an embedding, and such documents stop the run.
    """
    spec, info = equipment.identity, equipment.info
    row_bytes = max(1, len(equipment.planes)) * info.hidden * 4
    tokens = max(4 * int(spec["batch_tokens"]), WINDOW_BYTES // row_bytes)
    pack = spec["batches"] == "packed"
    for pieces in windows(needed_pieces(equipment.settings.root, task, ranges), tokens):
        poisoned = poisoned_ids(pieces, info.vocabulary)
        if poisoned and equipment.settings.on_error != "skip":
            raise PoisonedDocumentError.of(equipment.settings.root, poisoned)
        batches: list[Batch] = []
        for batch in micro_batches(pieces, int(spec["batch_tokens"]), pack=pack, pad_id=0):
            batches += without(batch, poisoned) if poisoned else [batch]
        yield Window(pieces, batches, poisoned)


def without(batch: Batch, poisoned: dict[int, str]) -> list[Batch]:
    """The batch without the documents that fail, in batches no larger."""
    good = [piece for piece in batch.pieces if piece.document not in poisoned]
    if len(good) == len(batch.pieces):
        return [batch]
    pack = batch.position_ids is not None
    return list(micro_batches(good, batch.input_ids.numel(), pack=pack, pad_id=0))
