"""What probes predict: a column of documents or tokens as classes, folds, and a control task.

Folds are of documents, and documents with the same tokens always share one, so that nothing that is
predicted was ever trained on. The control task (Hewitt and Liang 2019) keeps the classes' shares
but draws the class of every token type, or of every document where the column belongs to documents,
at random. Cost: one pass over the token table; 20 bytes a document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths
from numpy.typing import NDArray

from .rows import RowAxis
from .snapshot import Snapshot
from .token_columns import BLOCK_ROWS, TOKEN_COLUMNS, TokenColumns

Integers = NDArray[np.int64]

#: A column with more values than this needs those to use named; one with far more is no label.
MOST_CLASSES, MOST_VALUES = 64, 4096

#: Columns of tokens that say where a row is, not what it is.
_PLACES = frozenset({"document", "valid", "char_start", "char_end"})


@dataclass(frozen=True, eq=False)
class Labels:
    """The classes of some rows or documents.

    Attributes
    ----------
    field
        The column.
    of_tokens
        Whether it is a column of tokens.
    classes
        The values that are predicted, in order.
    share
        (classes,): of the labelled rows, or of the documents.
    documents
        Numbers of the documents that take part, ascending.
    fold
        (documents,): in which fold each is predicted.
    left_out
        Rows, or documents, without a value and with a value that is too rare or not wanted.
    """

    field: str
    of_tokens: bool
    classes: tuple[str, ...]
    share: NDArray[np.float64]
    documents: Integers
    fold: NDArray[np.int8]
    left_out: tuple[int, int]
    _of_document: Integers
    _control: Integers

    def of(self, columns: dict[str, NDArray[Any]]) -> tuple[Integers, Integers, Integers]:
        """Place among the documents, class and control class of rows; -1 where there is none.

        Parameters
        ----------
        columns
            ``document`` and, for a column of tokens, the field and ``token_id``.
        """
        at = np.searchsorted(self.documents, columns["document"])
        at[at == len(self.documents)] = 0
        at[self.documents[at] != columns["document"]] = -1
        if not self.of_tokens:
            return at, np.where(at < 0, -1, self._of_document[at]), self._control[at]
        place = {name: number for number, name in enumerate(self.classes)}
        codes, values = pd.factorize(_texts(columns[self.field]))
        known = np.array([*(place.get(value, -1) for value in values), -1], dtype=np.int64)
        return at, np.where(at < 0, -1, known[codes]), self._control[columns["token_id"]]

    @property
    def columns(self) -> list[str]:
        """Columns that ``of`` needs."""
        return ["document", self.field, "token_id"] if self.of_tokens else ["document"]


def find_labels(
    columns: TokenColumns, axis: RowAxis, field: str, wanted: Sequence[str] | None, folds: int,
    seed: int,
) -> Labels:  # fmt: skip
    """Look at a column along a row axis and draw folds and the control task.

    Parameters
    ----------
    columns, axis
        The token table, and the rows that may take part.
    field
        A column of documents, or of tokens; then content rows are counted.
    wanted
        The values to predict; None for all that at least ``folds`` documents have.
    folds, seed
        Number of folds, and what makes the draws repeatable.

    Raises
    ------
    RequestError
        There is no such column, too many values, or fewer than two that enough documents have.
    """
    of_tokens = field in TOKEN_COLUMNS and field not in _PLACES
    if not of_tokens and field not in columns.document_columns:
        tokens = ", ".join(name for name in TOKEN_COLUMNS if name not in _PLACES)
        raise RequestError(
            f"{columns.snapshots[0].root}: there is no label {field!r}; documents have "
            f"{', '.join(columns.document_columns)}, tokens have {tokens}"
        )
    found = _Scan(field, of_tokens)
    for block in _blocks(columns, axis, field, of_tokens):
        found.add(block)
    classes = found.classes(wanted, folds, str(columns.snapshots[0].root))
    counts = np.array([found.units[name] for name in classes], dtype=np.float64)
    share = counts / counts.sum()
    documents = np.array(sorted({d for c in classes for d in found.documents[c]}), dtype=np.int64)
    place = {name: number for number, name in enumerate(classes)}
    of_document = np.zeros(len(documents), np.int64)
    if not of_tokens:
        for name, number in place.items():
            of_document[np.searchsorted(documents, sorted(found.documents[name]))] = number
    draw = np.random.default_rng([seed, 1])
    size = found.largest_id + 1 if of_tokens else len(documents)
    rare = sum(found.units.values()) - int(counts.sum())
    return Labels(
        field, of_tokens, classes, share, documents,
        _folds(_alike(columns.snapshots, documents), of_document, folds, seed),
        (found.missing, rare), of_document, draw.choice(len(classes), size, p=share),
    )  # fmt: skip


class _Scan:
    """Values of a column, with how many units and which documents have each."""

    def __init__(self, field: str, of_tokens: bool) -> None:
        self._field, self._of_tokens = field, of_tokens
        self.units: dict[str, int] = {}
        self.documents: dict[str, set[int]] = {}
        self.missing, self.largest_id = 0, 0
        self._last = -1

    def add(self, block: dict[str, NDArray[Any]]) -> None:
        """Add rows; documents ascend."""
        document, values = block["document"], _texts(block[self._field])
        if self._of_tokens:
            self.largest_id = max(self.largest_id, int(block["token_id"].max(initial=0)))
        else:
            document, first = np.unique(document, return_index=True)
            fresh = document > self._last
            values, document = values[first][fresh], document[fresh]
            self._last = int(document[-1]) if len(document) else self._last
        codes, names = pd.factorize(values)
        self.missing += int((codes < 0).sum())
        if len(self.units) + len(names) > 2 * MOST_VALUES:
            raise RequestError(f"label {self._field!r} has more than {MOST_VALUES} values")
        for code, name in enumerate(names):
            mine = document[codes == code]
            self.units[name] = self.units.get(name, 0) + len(mine)
            self.documents.setdefault(name, set()).update(np.unique(mine).tolist())

    def classes(self, wanted: Sequence[str] | None, folds: int, where: str) -> tuple[str, ...]:
        """The values to predict, numbers as numbers."""
        names = list(dict.fromkeys(wanted)) if wanted is not None else list(self.units)
        unknown = [name for name in names if name not in self.units]
        if unknown:
            raise RequestError(f"{where}: nothing has {self._field} {unknown[0]!r}")
        enough = [name for name in names if len(self.documents[name]) >= folds]
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


def _blocks(
    columns: TokenColumns, axis: RowAxis, field: str, of_tokens: bool
) -> Iterator[dict[str, NDArray[Any]]]:
    names = ["document", field, "valid", *(("position", "special", "token_id") * of_tokens)]
    for first in range(0, len(axis), BLOCK_ROWS):
        pieces = list(axis.cut(first, min(len(axis), first + BLOCK_ROWS)))
        found = columns.read(pieces, list(dict.fromkeys(names)))
        kept = found["valid"]
        if of_tokens:
            kept = kept & (found["position"] > 0) & ~found["special"]
        yield {name: values[kept] for name, values in found.items()}


def _texts(values: NDArray[Any]) -> NDArray[Any]:
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
        return False, float(name), name
    except ValueError:
        return True, 0.0, name


def _alike(snapshots: Sequence[Snapshot], documents: Integers) -> Integers:
    """(documents,): a number that documents with the same tokens share."""
    digests: list[str] = []
    for snapshot in snapshots:
        digests += pq.read_table(
            StorePaths(snapshot.root).documents, columns=["digest"]
        ).column(0).to_pylist()  # fmt: skip
    starts = [snapshot.document_offset for snapshot in snapshots]
    assert starts[0] == 0
    group, _ = pd.factorize(np.array(digests, dtype=object)[documents])
    return np.asarray(group, dtype=np.int64)


def _folds(group: Integers, label: Integers, folds: int, seed: int) -> NDArray[np.int8]:
    """Deal groups of documents to the folds, class by class, in a drawn order."""
    _, first, member = np.unique(group, return_index=True, return_inverse=True)
    order = np.random.default_rng([seed, 0]).permutation(len(first))
    order = order[np.argsort(label[first][order], kind="stable")]
    fold = np.empty(len(first), np.int8)
    fold[order] = np.arange(len(first)) % folds
    return np.asarray(fold[member])
