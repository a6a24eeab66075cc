"""Which documents an intervention sweep measures, and where each is split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from depthscope.storage.errors import RequestError
from depthscope.storage.predicates import sample_documents
from depthscope.storage.sampling import sample_keys
from depthscope.storage.token_table import TokenTable

from .intervene_spec import InterveneSpec

#: Splits of a document where nobody says.
SPLITS = 4


def choose_documents(root: Path, spec: InterveneSpec) -> tuple[list[int], list[int]]:
    """The documents that a sweep measures, ascending, and the tokens of each.

    Raises
    ------
    RequestError
        Every document is shorter than two tokens.
    """
    table = TokenTable(root)
    numbers, _, lengths = table.document_spans()
    long_enough = numbers[lengths >= 2]
    if not len(long_enough):
        raise RequestError(
            f"{root}: every document is shorter than two tokens, so nothing comes after anything: "
            "extract a corpus of longer documents"
        )
    count = min(spec.documents or len(long_enough), len(long_enough))
    if spec.first_documents or count == len(long_enough):
        chosen = long_enough[:count]
    else:
        chosen = np.sort(long_enough[sample_documents(len(long_enough), count, spec.seed)])
    return chosen.tolist(), lengths[chosen].tolist()


def choose_splits(
    spec: InterveneSpec, scopes: Sequence[str], documents: Sequence[int], lengths: Sequence[int]
) -> list[list[int]]:
    """Positions of every document's splits, filled up with -1 to the same number.

    Raises
    ------
    RequestError
        They are no positions, or none lies inside a document.
    """
    if spec.splits is not None and spec.splits_per_document is not None:
        raise RequestError("--splits and --splits-per-document: give one of them")
    if "future" not in scopes:
        return [[-1] for _ in documents]
    if spec.splits == "official":
        rows = [_official(spec.seed, d, n) for d, n in zip(documents, lengths, strict=True)]
    elif spec.splits is not None:
        rows = [_explicit(spec.splits, n) for n in lengths]
    else:
        count = spec.splits_per_document or SPLITS
        rows = [_drawn(spec.seed, d, n, count) for d, n in zip(documents, lengths, strict=True)]
    if all(split < 0 for row in rows for split in row):
        raise RequestError(
            f"--splits {spec.splits or 'drawn'}: no split lies inside a document (a split t needs "
            f"2 ≤ t < tokens; the longest document has {max(lengths)}): give smaller ones"
        )
    most = max(len(row) for row in rows)
    return [row + [-1] * (most - len(row)) for row in rows]


def _explicit(text: str, length: int) -> list[int]:
    try:
        asked = [int(part) for part in text.split(",")]
    except ValueError:
        raise RequestError(
            f"--splits {text!r}: give positions such as 16,32,48, or official"
        ) from None
    if wrong := [split for split in asked if split < 2]:
        raise RequestError(
            f"--splits {wrong[0]}: a split t acts on positions 1 to t-1, so it is at least 2"
        )
    return [split if split < length else -1 for split in asked]


def _drawn(seed: int, document: int, length: int, count: int) -> list[int]:
    places = np.arange(2, length, dtype=np.int64)
    keys = sample_keys(places, seed + 7919 * (document + 1))
    return sorted(places[np.argsort(keys, kind="stable")[:count]].tolist())


def _official(seed: int, document: int, length: int) -> list[int]:
    """The paper's grid: 8, 16, … below T-4, shuffled, the first four (methods.md 1.3)."""
    grid = np.arange(8, length - 4, 8, dtype=np.int64)
    keys = sample_keys(grid, seed + 7919 * (document + 1))
    return sorted(grid[np.argsort(keys, kind="stable")[:4]].tolist())
