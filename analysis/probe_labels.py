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

from .label_scan import LabelScan, texts_of
from .rows import RowAxis
from .snapshot import Snapshot
from .token_columns import BLOCK_ROWS, TOKEN_COLUMNS, TokenColumns

Integers = NDArray[np.int64]

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
        codes, values = pd.factorize(texts_of(columns[self.field]))
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
    found = LabelScan(field, of_tokens)
    for block in _blocks(columns, axis, field, of_tokens):
        found.add(block)
    classes = found.classes(wanted, folds, str(columns.snapshots[0].root))
    counts = np.array([found.units[found.names[name]] for name in classes], dtype=np.float64)
    share = counts / counts.sum()
    documents, of_document = found.labelled(classes)
    draw = np.random.default_rng([seed, 1])
    size = found.largest_id + 1 if of_tokens else len(documents)
    rare = sum(found.units) - int(counts.sum())
    return Labels(
        field, of_tokens, classes, share, documents,
        _folds(_alike(columns.snapshots, documents), of_document, folds, seed),
        (found.missing, rare), of_document, draw.choice(len(classes), size, p=share),
    )  # fmt: skip


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
