"""Levels of documents: a field of the corpus as an ordered axis."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths
from numpy.typing import NDArray

from .store import Run

#: A field with more values than this is no level; numbers could be binned first.
MOST_LEVELS = 64

_NUMBERED = re.compile(r"(\D*?)(-?\d+(?:\.\d+)?)(\D*)")


@dataclass(frozen=True, eq=False)
class Levels:
    """The levels of some documents.

    Attributes
    ----------
    labels
        The levels in order: int64, float64 or text.
    numbers
        float64: what the labels stand for, or their rank where they hold no number.
    ordered
        Whether the order means anything: by number, as given, or because there are only two.
    of_document
        int64: place of every document's level among the labels, -1 for none.
    """

    labels: NDArray[Any]
    numbers: NDArray[np.float64]
    ordered: bool
    of_document: NDArray[np.int64]


def document_levels(
    run: Run, documents: NDArray[np.int64], field: str, order: Sequence[str] | None = None
) -> Levels:
    """The levels of documents, by a column of ``documents.parquet``.

    Numbers are sorted as numbers, also in text such as ``Level 5``; other text by name.

    Parameters
    ----------
    documents
        Numbers of documents of the one store that is open.
    order
        The levels to use, in their order; None for all.

    Raises
    ------
    RequestError
        There is no such column, it has too many values, or none of those in ``order``.
    """
    path = StorePaths(run.snapshots[0].root).documents
    names = pq.read_schema(path).names
    if field not in names:
        raise RequestError(
            f"{path}: there is no field {field!r}; documents have {', '.join(names)}"
        )
    column = pq.read_table(path, columns=[field]).column(field).take(documents)
    values = [None if _missing(value) else _clean(value) for value in column.to_pylist()]
    found = {value for value in values if value is not None}
    if order is not None:
        return _given(values, order, field)
    if len(found) > MOST_LEVELS:
        raise RequestError(
            f"{path}: field {field!r} has {len(found)} different values, a level at most "
            f"{MOST_LEVELS}; name those to use with --levels"
        )
    numbers = _numbers(found)
    if numbers is None:
        labels = sorted(found, key=str)
        ranks = np.arange(len(labels), dtype=np.float64)
        return _levels(values, labels, ranks, ordered=len(labels) == 2)
    labels = sorted(found, key=lambda value: numbers[value])
    return _levels(values, labels, np.array([numbers[label] for label in labels]), ordered=True)


def _given(values: Sequence[Any], order: Sequence[str], field: str) -> Levels:
    spelled = {str(value): value for value in values if value is not None}
    unknown = [label for label in order if label not in spelled]
    if unknown:
        raise RequestError(
            f"no document has {field} {', '.join(map(repr, unknown))}; there are "
            f"{', '.join(sorted(spelled)[:MOST_LEVELS])}"
        )
    labels = [spelled[label] for label in dict.fromkeys(order)]
    numbers = _numbers(set(labels)) or {label: rank for rank, label in enumerate(labels)}
    return _levels(values, labels, np.array([float(numbers[x]) for x in labels]), ordered=True)


def _levels(
    values: Sequence[Any], labels: Sequence[Any], numbers: NDArray[np.float64], *, ordered: bool
) -> Levels:
    place = {label: at for at, label in enumerate(labels)}
    kept = np.array(labels) if labels else np.empty(0, np.int64)
    if kept.dtype.kind not in "if":
        kept = np.array([str(label) for label in labels])
        if ordered and all(re.fullmatch(r"-?\d+", label) for label in kept):
            kept = kept.astype(np.int64)
    return Levels(
        kept, numbers, ordered, np.array([place.get(value, -1) for value in values], np.int64)
    )


def _numbers(found: set[Any]) -> dict[Any, float] | None:
    """The number that each value is, or holds amid words that all of them share; or None."""
    if all(isinstance(value, int | float) for value in found):
        return {value: float(value) for value in found}
    parts = {value: _NUMBERED.fullmatch(str(value)) for value in found}
    words = {(match[1].casefold(), match[3].casefold()) for match in parts.values() if match}
    if len(words) != 1 or not all(parts.values()):
        return None
    return {value: float(match[2]) for value, match in parts.items() if match}


def _missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and np.isnan(value))


def _clean(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).strip()
    return value
