"""From a task's documents to micro-batches: little padding, positions right, the same every time.

Documents are taken in the corpus's order into *windows* that bound the memory of what is captured,
and inside a window sorted by length and cut by a token budget. Everything follows from the task and
the run's identity, never from the machine, so that any worker makes the same batches. Padding is on
the right: the model is causal, so a row never sees it and every position is what it would be alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """A document, or its beginning up to the last row that the task needs of it.

    Attributes
    ----------
    document
        Number of the document.
    first_row
        Corpus row of its first token.
    token_ids
        int32, the tokens to run.
    next_id
        The token after them in the document; -1 at its end.
    """

    document: int
    first_row: int
    token_ids: NDArray[np.int32]
    next_id: int = -1

    @property
    def length(self) -> int:
        """Tokens to run."""
        return len(self.token_ids)


@dataclass(frozen=True)
class Batch:
    """What goes through the model in one call.

    Attributes
    ----------
    input_ids
        int64 (lines, width), padded on the right.
    position_ids
        int64 (lines, width) when documents are packed into one line; otherwise None, since the
        positions of a line padded on the right are simply 0, 1, 2, …
    pieces
        The documents.
    offsets
        Where each piece starts in the flattened (lines × width) batch.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor | None
    pieces: tuple[Piece, ...]
    offsets: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of the documents, padding apart."""
        return sum(piece.length for piece in self.pieces)

    def holds(self, first: int, last: int) -> torch.Tensor:
        """bool (lines × width): which places hold a corpus row of [first, last)."""
        mask = torch.zeros(self.input_ids.numel(), dtype=torch.bool)
        for piece, offset in zip(self.pieces, self.offsets, strict=True):
            start = offset + max(0, first - piece.first_row)
            mask[start : offset + min(piece.length, last - piece.first_row)] = True
        return mask

    def next_ids(self) -> torch.Tensor:
        """int64 (lines × width): the token that really follows each place, -1 where none does."""
        following = torch.full((self.input_ids.numel(),), -1, dtype=torch.int64)
        for piece, offset in zip(self.pieces, self.offsets, strict=True):
            following[offset : offset + piece.length - 1] = torch.from_numpy(
                piece.token_ids[1:].astype(np.int64)
            )
            following[offset + piece.length - 1] = piece.next_id
        return following


def windows(pieces: Sequence[Piece], window_tokens: int) -> Iterator[list[Piece]]:
    """Cut the pieces, in order, into runs of about ``window_tokens`` tokens, at least one each."""
    window: list[Piece] = []
    tokens = 0
    for piece in pieces:
        if window and tokens + piece.length > window_tokens:
            yield window
            window, tokens = [], 0
        window.append(piece)
        tokens += piece.length
    if window:
        yield window


def micro_batches(
    window: Sequence[Piece], batch_tokens: int, *, pack: bool, pad_id: int
) -> Iterator[Batch]:
    """Sort a window by length and cut it by the budget of (padded) tokens, longest first."""
    order = sorted(window, key=lambda piece: (-piece.length, piece.document))
    join = _pack if pack else _pad
    batch: list[Piece] = []
    tokens = 0
    for piece in order:
        size = (tokens + piece.length) if pack else (len(batch) + 1) * (batch or order)[0].length
        if batch and size > batch_tokens:
            yield join(batch, pad_id)
            batch, tokens = [], 0
        batch.append(piece)
        tokens += piece.length
    if batch:
        yield join(batch, pad_id)


def _pad(pieces: list[Piece], pad_id: int) -> Batch:
    width = pieces[0].length
    ids = torch.full((len(pieces), width), pad_id, dtype=torch.int64)
    for line, piece in enumerate(pieces):
        ids[line, : piece.length] = torch.from_numpy(piece.token_ids.astype(np.int64))
    return Batch(ids, None, tuple(pieces), tuple(line * width for line in range(len(pieces))))


def _pack(pieces: list[Piece], pad_id: int) -> Batch:
    ids = np.concatenate([piece.token_ids for piece in pieces]).astype(np.int64)
    positions = np.concatenate([np.arange(piece.length) for piece in pieces])
    offsets = np.cumsum([0] + [piece.length for piece in pieces[:-1]])
    return Batch(
        torch.from_numpy(ids)[None],
        torch.from_numpy(positions)[None],
        tuple(pieces),
        tuple(int(offset) for offset in offsets),
    )
