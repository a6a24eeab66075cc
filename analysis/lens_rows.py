"""Which rows a lens is trained, validated and tested on: a split by documents, never by rows.

Documents with equal content land in one part, and the draw depends on content and seed alone (see
``shared_documents``), so nothing held out was ever trained on, also when the corpus grows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths
from numpy.typing import NDArray

from .rows import RowAxis
from .shared_documents import TEST, TRAINING, VALIDATION, SharedDocuments
from .store import Run

Ints = NDArray[np.int64]

#: Rows of the token table that are looked at together.
_BLOCK = 1 << 18
#: Neighbouring rows that are drawn together, so that chunks are read less often.
STRETCH = 32


@dataclass(frozen=True, eq=False)
class LensRows:
    """Places along the row axis of the residual stream, ascending.

    Attributes
    ----------
    training, validation
        Rows of those documents.
    fitted, chosen
        Those among them that are neither first of their document nor special tokens (all where
        there are none): for the closed form.
    test
        Rows of the corpus that are held out.
    documents
        Documents of training, validation and test.
    """

    training: Ints
    validation: Ints
    fitted: Ints
    chosen: Ints
    test: Ints
    documents: tuple[int, int, int]

    @classmethod
    def of(cls, run: Run, axis: RowAxis, validation: float, test: float, seed: int) -> LensRows:
        """Split the rows of a run.

        Raises
        ------
        RequestError
            There are too few documents, or no row in a part.
        """
        number, part = _document_parts(run, validation, test, seed)
        found: list[tuple[Ints, ...]] = []
        columns = run.columns(axis)
        for first in range(0, len(axis), _BLOCK):
            pieces = list(axis.cut(first, min(first + _BLOCK, len(axis))))
            tokens = columns.read(pieces, ["document", "position", "special", "valid"])
            of_row = part[np.searchsorted(number, tokens["document"])].astype(np.int64)
            of_row[~tokens["valid"]] = -1
            content = (tokens["position"] > 0) & ~tokens["special"]
            found.append((of_row, content.astype(np.int64), tokens["document"]))
        of_row, content, document = (np.concatenate(column) for column in zip(*found, strict=True))
        places = [np.flatnonzero(of_row == one) for one in (TRAINING, VALIDATION, TEST)]
        names = ("train", "validate", "test")
        empty = [name for name, rows in zip(names, places, strict=True) if not len(rows)]
        if empty:
            raise RequestError(
                f"{run.snapshots[0].root}: a tuned lens has no rows to {' and to '.join(empty)} "
                "on: it needs valid rows of at least three documents"
            )
        usable = [rows[content[rows] > 0] for rows in places[:2]]
        fitted, chosen = usable if all(len(u) for u in usable) else places[:2]
        rows = np.asarray(axis.index, dtype=np.int64)[places[2]]
        counts = [len(np.unique(document[one])) for one in places]
        return cls(places[0], places[1], fitted, chosen, rows, (counts[0], counts[1], counts[2]))


@dataclass(frozen=True, eq=False)
class Draws:
    """Batches of training rows, drawn without replacement, stretch by stretch.

    Which rows a step gets depends on the seed and its number alone, so a training that was
    interrupted goes on with the same batches.
    """

    rows: Ints
    size: int
    seed: int

    def batch(self, step: int) -> Ints:
        """The rows of a step, ascending; all where there are no more than a batch holds."""
        if len(self.rows) <= self.size:
            return self.rows
        stretches = -(-len(self.rows) // STRETCH)
        count = max(1, self.size // STRETCH)
        parts = []
        for at in range(step * count, (step + 1) * count):
            epoch, place = divmod(at, stretches)
            order = np.random.default_rng([self.seed, epoch]).permutation(stretches)
            first = int(order[place]) * STRETCH
            parts.append(self.rows[first : first + STRETCH])
        return np.unique(np.concatenate(parts))


def _document_parts(
    run: Run, validation: float, test: float, seed: int
) -> tuple[Ints, NDArray[np.int8]]:
    """Number and part of every document of the stores, ascending."""
    numbers, digests = [], []
    for snapshot in run.snapshots:
        table = pq.read_table(StorePaths(snapshot.root).documents, columns=["document", "digest"])
        numbers.append(table.column("document").to_numpy() + snapshot.document_offset)
        digests += [digest.encode() for digest in table.column("digest").to_pylist()]
    number = np.concatenate(numbers).astype(np.int64)
    if len(set(digests)) < 3:
        raise RequestError(
            f"{run.snapshots[0].root}: a tuned lens needs three different documents, one each to "
            f"train, to validate and to test on; there are {len(set(digests))}"
        )
    every = SharedDocuments(number, number, tuple(digests), (len(number), len(number)), True)
    return number, every.parts(validation, test, seed)
