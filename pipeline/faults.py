"""Documents that fail, and values that are not finite: found, named and counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from depthscope.storage.errors import WorkFailed
from depthscope.storage.token_table import TokenTable

from .batches import Batch, Piece, micro_batches
from .capture import OnPoint
from .model import Body


class PoisonedDocumentError(WorkFailed):
    """A document cannot be run through the model."""

    @classmethod
    def of(cls, root: Path, poisoned: Mapping[int, str]) -> PoisonedDocumentError:
        """Name the documents."""
        named = "; ".join(
            f"{_place(root, document)} fails: {error}" for document, error in poisoned.items()
        )
        return cls(f"{named}: mend the corpus, or give --on-error skip to keep it as invalid rows")


class NonFiniteError(WorkFailed):
    """The model produced NaN or infinities."""

    @classmethod
    def of(cls, root: Path, counts: Mapping[str, int], documents: Sequence[int]) -> NonFiniteError:
        """Name the first place and the documents."""
        first, number = next(iter(counts.items()))
        return cls(
            f"{number} values are not finite at {first}, in {_place(root, documents[0])}"
            f"{f' and {len(documents) - 1} more' if len(documents) > 1 else ''}: "
            "run with another --dtype, or give --allow-nonfinite to store and count them"
        )


def _place(root: Path, document: int) -> str:
    table = TokenTable(root).read_documents(["source", "line"])
    source, line = (table.column(name)[document].as_py() for name in ("source", "line"))
    return f"{source} line {line} (document {document})"


def poisoned_ids(pieces: Sequence[Piece], vocabulary: int) -> dict[int, str]:
    """Documents with token ids that have no embedding, which on a GPU would end the process."""
    found: dict[int, str] = {}
    for piece in pieces:
        smallest, largest = int(piece.token_ids.min()), int(piece.token_ids.max())
        if smallest < 0 or largest >= vocabulary:
            wrong = smallest if smallest < 0 else largest
            found[piece.document] = f"token id {wrong} is outside the vocabulary of {vocabulary}"
    return found


def find_poison(body: Body, batch: Batch) -> dict[int, str]:
    """Run every document of a failing batch alone; the numbers and errors of those that fail."""
    poisoned: dict[int, str] = {}
    for piece in batch.pieces:
        (alone,) = micro_batches([piece], piece.length, pack=False, pad_id=0)
        try:
            body.run(alone.input_ids.to(body.device), on_point=None, on_layer=None)
        except Exception as error:
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            poisoned[piece.document] = text
    return poisoned


def count_nonfinite(
    run: Callable[[OnPoint], None], batch: Batch, rows: tuple[int, int]
) -> tuple[dict[str, int], list[int]]:
    """Count, at every point that ``run`` passes, values of these rows that are not finite.

    Returns
    -------
    The counts by place, and the documents they lie in.
    """
    counts: dict[str, int] = {}
    valid = batch.holds(*rows)
    bad_rows = torch.zeros_like(valid)

    def count(point: int, hidden: torch.Tensor) -> None:
        nonlocal bad_rows
        bad = ~torch.isfinite(hidden.reshape(-1, hidden.shape[-1])).cpu() & valid[:, None]
        if number := int(bad.sum()):
            counts[f"residual/{point}"] = number
            bad_rows = bad_rows | bad.any(dim=1)

    run(count)
    documents = [
        piece.document
        for piece, offset in zip(batch.pieces, batch.offsets, strict=True)
        if bool(bad_rows[offset : offset + piece.length].any())
    ]
    return counts, documents
