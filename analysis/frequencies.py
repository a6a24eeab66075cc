"""How common every token is: buckets by rank in a table of counts.

The counts are those of the store's own corpus, special tokens left out, or of a table that is
given. Ranks go by count, the smaller token id first among equals; a token that was never counted is
in the last bucket. Source of the buckets: "How Do LLMs Use Their Depth?", arXiv 2510.18871.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.json as pj
import pyarrow.parquet as pq
from blake3 import blake3
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths
from numpy.typing import NDArray

from .store import Run

#: Last rank of every bucket but the last.
EDGES = (10, 100, 1000)
BUCKETS = ("1-10", "11-100", "101-1000", "rest")


@dataclass(frozen=True, eq=False)
class TokenBuckets:
    """The bucket of every token.

    Attributes
    ----------
    of_token
        (vocabulary,) int8: place in ``BUCKETS``.
    digest
        Of the counts.
    source
        ``corpus``, or the name of the table's file.
    """

    of_token: NDArray[np.int8]
    digest: str
    source: str

    def __getitem__(self, tokens: NDArray[Any]) -> NDArray[np.int8]:
        """Buckets of token ids in any shape; -1 where an id is negative."""
        # A head may have rows that stand for no token.
        known = np.append(self.of_token, np.int8(len(EDGES)))
        return np.where(tokens < 0, np.int8(-1), known[np.clip(tokens, 0, len(known) - 1)])

    def parameters(self) -> dict[str, str]:
        """What decides the buckets."""
        return {"frequencies": self.source, "frequencies_digest": self.digest}


def token_buckets(run: Run, table: Path | None = None) -> TokenBuckets:
    """Count the tokens of a run's stores, or read counts.

    Parameters
    ----------
    run
        Its whole stores are counted, whatever it selects and whatever is committed.
    table
        A ``.parquet``, ``.csv`` or ``.jsonl`` file with the columns ``token_id`` and ``count``.

    Raises
    ------
    RequestError
        The table cannot be read, lacks a column or holds anything but counts.
    """
    size = int(run.info["model"]["vocabulary"])
    counts = _corpus_counts(run, size) if table is None else _table_counts(table, size)
    return TokenBuckets(
        buckets_of(counts),
        blake3(counts.tobytes()).hexdigest(),
        "corpus" if table is None else table.name,
    )


def buckets_of(counts: NDArray[np.int64]) -> NDArray[np.int8]:
    """The bucket of every token by its count, (vocabulary,) int8."""
    order = np.argsort(-counts, kind="stable")
    found = np.empty(len(counts), np.int8)
    found[order] = np.searchsorted(EDGES, np.arange(len(counts)), side="right")
    found[counts == 0] = len(EDGES)
    return found


def _corpus_counts(run: Run, size: int) -> NDArray[np.int64]:
    counts = np.zeros(size, np.int64)
    for snapshot in run.snapshots:
        with pq.ParquetFile(StorePaths(snapshot.root).tokens) as file:
            for batch in file.iter_batches(1 << 18, columns=["token_id", "special"]):
                tokens = np.asarray(batch.column("token_id").to_numpy())
                special = np.asarray(batch.column("special").to_numpy(zero_copy_only=False))
                counts = _with(counts, tokens[~special], 1)
    return counts


def _table_counts(path: Path, size: int) -> NDArray[np.int64]:
    readers = {".parquet": pq.read_table, ".csv": pc.read_csv, ".jsonl": pj.read_json}
    reader = readers.get(path.suffix)
    if reader is None:
        raise RequestError(f"{path}: frequencies are read from .parquet, .csv and .jsonl files")
    try:
        table = reader(path)
        columns = [np.asarray(table.column(name).to_numpy()) for name in ("token_id", "count")]
    except KeyError:
        raise RequestError(
            f"{path}: frequencies need the columns token_id and count; there are "
            f"{', '.join(table.column_names)}"
        ) from None
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise RequestError(f"{path}: frequencies cannot be read: {reason}") from None
    if any(column.dtype.kind not in "iu" or (column < 0).any() for column in columns):
        raise RequestError(f"{path}: token_id and count must be whole numbers, none negative")
    return _with(np.zeros(size, np.int64), *columns)


def _with(counts: NDArray[np.int64], tokens: NDArray[Any], times: Any) -> NDArray[np.int64]:
    """The counts with more; longer where a token's id is beyond them."""
    if len(tokens) and int(tokens.max()) >= len(counts):
        counts = np.pad(counts, (0, int(tokens.max()) + 1 - len(counts)))
    np.add.at(counts, tokens.astype(np.int64), times)
    return counts
