"""Which values a column has, in how many units and documents, from one pass over its rows.

Held are the values, and 16 bytes a document; 8 where the column belongs to tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

Integers = NDArray[np.int64]

#: A column with more values than this needs those to use named; one with far more is no label.
MOST_CLASSES, MOST_VALUES = 64, 4096


class LabelScan:
    """Values of a column, with how many units and documents have each; documents ascend."""

    def __init__(self, field: str, of_tokens: bool) -> None:
        self._field, self._of_tokens = field, of_tokens
        self.names: dict[str, int] = {}
        self.units: list[int] = []
        self._documents: list[int] = []
        self._seen_last: list[int] = []
        self.missing, self.largest_id = 0, 0
        self._last = -1
        self._parts: list[tuple[Integers, Integers]] = [(np.empty(0, np.int64),) * 2]

    def add(self, block: dict[str, NDArray[Any]]) -> None:
        """Add rows."""
        document, values = block["document"], texts_of(block[self._field])
        if self._of_tokens:
            self.largest_id = max(self.largest_id, int(block["token_id"].max(initial=0)))
        else:
            document, first = np.unique(document, return_index=True)
            fresh = document > self._last
            values, document = values[first][fresh], document[fresh]
        if not len(document):
            return
        self._last = int(document[-1])
        local, names = pd.factorize(values)
        self.missing += int((local < 0).sum())
        places = np.array([*(self._place(str(name)) for name in names), -1], dtype=np.int64)
        code, document = places[local[local >= 0]], document[local >= 0]
        if not len(code):
            return
        if not self._of_tokens:
            self._parts.append((document, code))
        else:
            self._parts.append((np.unique(document),) * 2)
        for at, count in zip(*np.unique(code, return_counts=True), strict=True):
            self.units[at] += int(count)
        span = int(document[-1] - document[0]) + 1
        pairs = np.unique(code * span + (document - document[0]))
        owner, number = pairs // span, pairs % span + document[0]
        found = np.unique(owner, return_index=True, return_counts=True)
        for at, start, count in zip(*found, strict=True):
            mine = number[start : start + count]
            self._documents[at] += len(mine) - int(mine[0] == self._seen_last[at])
            self._seen_last[at] = int(mine[-1])

    def labelled(self, classes: Sequence[str]) -> tuple[Integers, Integers]:
        """Documents that take part, and the class of each; 0 where the column is of tokens."""
        document, code = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        if self._of_tokens:
            documents = np.unique(document)
            return documents, np.zeros(len(documents), np.int64)
        place = np.full(len(self.names), -1, np.int64)
        for number, name in enumerate(classes):
            place[self.names[name]] = number
        chosen = place[code] >= 0
        return document[chosen], place[code[chosen]]

    def _place(self, name: str) -> int:
        if name not in self.names:
            if len(self.names) == MOST_VALUES:
                raise RequestError(f"label {self._field!r} has more than {MOST_VALUES} values")
            self.names[name] = len(self.names)
            self.units.append(0)
            self._documents.append(0)
            self._seen_last.append(-1)
        return self.names[name]

    def classes(self, wanted: Sequence[str] | None, folds: int, where: str) -> tuple[str, ...]:
        """The values to predict, numbers as numbers."""
        names = list(dict.fromkeys(wanted)) if wanted is not None else list(self.names)
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise RequestError(f"{where}: nothing has {self._field} {unknown[0]!r}")
        enough = [name for name in names if self._documents[self.names[name]] >= folds]
        if len(enough) < 2:
            raise RequestError(
                f"{where}: label {self._field!r} has {len(enough)} values that at least {folds} "
                "documents have, and probes need two: take more documents or fewer --folds"
            )
        if len(enough) > MOST_CLASSES:
            raise RequestError(
                f"{where}: label {self._field!r} has {len(enough)} values, probes predict at most "
                f"{MOST_CLASSES}: name those to use with --labels"
            )
        return tuple(enough if wanted is not None else sorted(enough, key=_order))


def texts_of(values: NDArray[Any]) -> NDArray[Any]:
    """Values as text, None where there is none; whole numbers without a point."""
    codes, different = pd.factorize(values)
    texts = np.array([*(_text(value) for value in different), None], dtype=object)
    return np.asarray(texts[codes])


def _text(value: Any) -> str | None:
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    # A token keeps its spaces: they are part of it.
    return str(value) or None


def _order(name: str) -> tuple[bool, float, str]:
    try:
        number = float(name)
    except ValueError:
        number = float("nan")
    return (False, number, name) if np.isfinite(number) else (True, 0.0, name)
