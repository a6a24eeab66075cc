"""Rows of two runs that stand for the same place in the same text.

With one tokenizer two rows pair when document, position and token id are equal. Otherwise they
pair when their tokens end at the same character of the same text: both models have then read
exactly the same characters. Where several tokens of a store end there (the bytes of one character),
the last one counts. Cost: the columns of both token tables are read once, 40 bytes a row meanwhile
and 20 bytes a pair afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

from .shared_documents import SharedDocuments
from .store import Run

Pairing = Literal["auto", "tokens", "offsets"]
TokenSet = Literal["content", "all"]


@dataclass(frozen=True, eq=False)
class RowPairs:
    """Pairs of rows, ascending in the source's rows.

    Attributes
    ----------
    source, target
        Places along the axis ``activations`` of either run.
    document
        The pair's place among the shared documents.
    rule
        ``tokens`` or ``offsets``.
    candidates
        Rows of the source and of the target that could have paired.
    """

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    document: NDArray[np.int32]
    rule: str
    candidates: tuple[int, int]

    def __len__(self) -> int:
        return len(self.source)

    @property
    def shares(self) -> tuple[float, float]:
        """Share of the source's and of the target's candidates that paired."""
        return len(self) / max(self.candidates[0], 1), len(self) / max(self.candidates[1], 1)


def pair_rows(
    a: Run, b: Run, shared: SharedDocuments, token_set: TokenSet, pairing: Pairing
) -> RowPairs:
    """Pair the stored rows of the shared documents.

    Parameters
    ----------
    a, b
        Source and target.
    shared
        Their common documents.
    token_set
        ``content`` leaves out first positions and special tokens of either store.
    pairing
        ``auto`` compares tokens where the tokenizers are the same, character offsets elsewhere.

    Raises
    ------
    RequestError
        No rows pair.
    """
    rule = pairing if pairing != "auto" else ("tokens" if shared.by_tokens else "offsets")
    one, other = (
        _Candidates.of(run, documents, token_set, rule)
        for run, documents in ((a, shared.source), (b, shared.target))
    )
    _, left, right = np.intersect1d(one.key, other.key, assume_unique=True, return_indices=True)
    if rule == "tokens":
        same = one.token[left] == other.token[right]
        left, right = left[same], right[same]
    if not len(left):
        raise RequestError(
            f"no rows of the two stores pair by {rule}: "
            + (
                "give --pairing offsets if their tokenizers differ"
                if rule == "tokens"
                else "their token tables need character offsets, which pretokenised data lacks"
            )
        )
    order = np.argsort(one.place[left], kind="stable")
    left, right = left[order], right[order]
    return RowPairs(
        source=one.place[left],
        target=other.place[right],
        document=(one.key[left] >> 32).astype(np.int32),
        rule=rule,
        candidates=(len(one.key), len(other.key)),
    )


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Rows of one run that may pair: where they are, and what must agree."""

    place: NDArray[np.int64]
    key: NDArray[np.int64]
    token: NDArray[np.int32]

    @classmethod
    def of(
        cls, run: Run, documents: NDArray[np.int64], token_set: TokenSet, rule: str
    ) -> _Candidates:
        axis = run.axis("activations")
        within = "position" if rule == "tokens" else "char_end"
        names = ["document", "position", "special", "valid", "token_id", within]
        columns = run.columns(axis).read(axis.pieces, list(dict.fromkeys(names)))
        order = np.argsort(documents)
        at = np.searchsorted(documents, columns["document"], sorter=order)
        at = order[np.minimum(at, len(order) - 1)]
        keep = (documents[at] == columns["document"]) & columns["valid"]
        keep &= columns[within] >= (0 if rule == "tokens" else 1)
        if token_set == "content":
            keep &= (columns["position"] > 0) & ~columns["special"]
        place = np.flatnonzero(keep)
        key = (at[place].astype(np.int64) << 32) | columns[within][place].astype(np.int64)
        if rule == "offsets":
            place, key = _last_of_each(place, key)
        return cls(place, key, columns["token_id"][place])


def _last_of_each(place: NDArray[Any], key: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The last of the rows that have one key."""
    _, back = np.unique(key[::-1], return_index=True)
    kept = np.sort(len(key) - 1 - back)
    return place[kept], key[kept]
