"""What a run is asked to do, in numbers: the corpus's size, what is stored, how it is cut.

Nothing here needs a model or a store; everything follows the rules by which a store is laid out
(`storage.tasks`), so that bytes and files come out as they will be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from depthscope.storage.tasks import SHARD_BYTES, choose_task_rows, crossing_rows, selection_layout
from numpy.typing import NDArray

from .costs import ModelCosts, item_size
from .statistics import N_STATISTICS

#: What byte shuffle and zstd leave of real residuals (design: 0.63 to 0.69).
ZSTD_RATIO = 0.66

#: Arrays that hold statistics, and lens values.
_STATISTICS_ARRAYS, _LENS_ARRAYS = 3, 6

#: Bytes of a number of statistics or of the lens.
_NUMBER = 4


@dataclass(frozen=True)
class CorpusSize:
    """How much text there is.

    Attributes
    ----------
    rows
        Tokens.
    documents
        How many.
    document_tokens
        Tokens of the document that a token stands in, on average over all tokens.
    longest
        Tokens of the longest document.
    source
        How this is known: counted, estimated, given.
    lengths
        Tokens of some documents, in the corpus's order; what stands for the others.
    """

    rows: int
    documents: int
    document_tokens: float
    longest: int
    source: str
    lengths: tuple[int, ...]

    @classmethod
    def of_lengths(cls, lengths: Sequence[int], source: str = "counted") -> CorpusSize:
        """A corpus of documents of those lengths."""
        sizes = np.asarray(lengths, dtype=np.int64)
        rows = int(sizes.sum())
        return cls(
            rows,
            len(sizes),
            float((sizes.astype(np.float64) ** 2).sum() / max(rows, 1)),
            int(sizes.max(initial=1)),
            source,
            tuple(int(size) for size in sizes[:4096]),
        )

    @classmethod
    def of_tokens(cls, rows: int, document_tokens: int) -> CorpusSize:
        """So many tokens in documents of one length."""
        length = max(1, min(document_tokens, rows))
        documents = -(-rows // length)
        return cls(rows, documents, float(length), length, "given", (length,))


@dataclass(frozen=True)
class Selection:
    """What is taken of every row, and how rows form micro-batches and tasks.

    Attributes
    ----------
    points
        Stored points, ascending.
    sublayers
        Whether what attention and MLP add is stored.
    statistics
        Whether every row is measured.
    lens_rows
        Rows that get lens values.
    store_dtype, codec
        Of stored activations.
    batch_tokens
        Budget of a micro-batch.
    packed
        Whether documents share a line without padding.
    task_rows
        Rows of a task.
    lens_memory
        Largest rows × vocabulary array of the lens.
    row_share
        Share of the rows whose activations are stored.
    """

    points: tuple[int, ...]
    sublayers: bool
    statistics: bool
    lens_rows: int
    store_dtype: str
    codec: Literal["none", "zstd"]
    batch_tokens: int
    packed: bool
    task_rows: int
    lens_memory: int = 128 << 20
    row_share: float = 1.0

    @property
    def store_itemsize(self) -> int:
        """Bytes of a stored value."""
        return item_size(self.store_dtype)

    def planes(self, first: int, last: int) -> int:
        """Stored planes that layers ``first`` to ``last`` (end excluded) bring forth."""
        own = sum(first < point <= last or point == first == 0 for point in self.points)
        return own + (2 * (last - first) if self.sublayers else 0)

    def holds_stream(self, layers: int, dtype: str) -> bool:
        """Whether the store gets every row of every point in the model's own dtype."""
        every = self.points == tuple(range(layers + 1))
        return every and self.row_share == 1 and self.store_dtype == dtype


@dataclass(frozen=True)
class Volume:
    """What a run stores.

    Attributes
    ----------
    plane_bytes
        Of one row at one plane, as written.
    plane_rows
        Stored rows × planes.
    number_bytes
        Of all statistics and lens values.
    files
        Shards of all arrays; commits apart.
    folders
        That hold a single shard, or a task's commits: each takes an inode as well.
    tasks
        Tasks of the run.
    rows_run
        Rows that go through the model: the corpus's, and those run twice at borders of tasks.
    """

    plane_bytes: float
    plane_rows: int
    number_bytes: int
    files: int
    folders: int
    tasks: int
    rows_run: int

    @property
    def nbytes(self) -> float:
        """Bytes of all arrays."""
        return self.plane_bytes * self.plane_rows + self.number_bytes


def volume(costs: ModelCosts, corpus: CorpusSize, selection: Selection) -> Volume:
    """Bytes and files of a run."""
    layers, rows = len(costs.layers), corpus.rows
    tasks = -(-rows // selection.task_rows)
    planes = selection.planes(0, layers)
    stored = max(1, round(rows * selection.row_share))
    row_bytes = costs.hidden * selection.store_itemsize
    cut = selection_layout(stored, rows, selection.task_rows, row_bytes)
    numbers, files = 0, planes * -(-stored // cut.rows_per_shard)
    folders = files + tasks
    if selection.statistics:
        numbers += rows * layers * N_STATISTICS * _NUMBER
        files += _STATISTICS_ARRAYS * tasks
    lens = min(selection.lens_rows, rows)
    if lens:
        width = _NUMBER * (layers + 1)
        numbers += lens * width * _LENS_ARRAYS
        layout = selection_layout(lens, rows, selection.task_rows, width)
        files += _LENS_ARRAYS * -(-lens // layout.rows_per_shard)
    ratio = ZSTD_RATIO if selection.codec == "zstd" else 1.0
    firsts, sample = _first_rows(corpus, 256 * selection.task_rows)
    twice = crossing_rows(firsts, sample, selection.task_rows) / sample
    return Volume(
        plane_bytes=row_bytes * ratio,
        plane_rows=planes * stored,
        number_bytes=numbers,
        files=files,
        folders=folders,
        tasks=tasks,
        rows_run=rows + int(twice * rows),
    )


def task_rows(costs: ModelCosts, corpus: CorpusSize, store_itemsize: int) -> int:
    """Rows of a task where nobody says, as a store's layout chooses them."""
    row_bytes = costs.hidden * store_itemsize
    # From so many rows on, the choice depends on the documents' lengths alone.
    firsts, rows = _first_rows(corpus, 64 * max(1, SHARD_BYTES // row_bytes))
    return choose_task_rows(firsts, rows, row_bytes)


def _first_rows(corpus: CorpusSize, most: int) -> tuple[NDArray[np.int64], int]:
    """First rows of the documents of a corpus like this one, of at most so many rows; its rows."""
    rows = min(corpus.rows, most)
    lengths = np.asarray(corpus.lengths, dtype=np.int64)
    repeats = -(-rows // max(1, int(lengths.sum())))
    firsts = np.concatenate(([0], np.cumsum(np.tile(lengths, repeats))[:-1]))
    return firsts[firsts < rows], rows
