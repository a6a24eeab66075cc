"""The two growing Parquet files behind a ``TableWriter``, each of bounded memory."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .document_fields import TOKEN_SCHEMA

#: Tokens in a row group; a reader of a few rows reads this many at most.
ROWS_PER_GROUP = 65536
_DOCUMENTS_PER_GROUP = 8192
_BYTES_PER_GROUP = 16 << 20


class TokenFile:
    """Collects token columns and writes row groups of exactly ``ROWS_PER_GROUP``."""

    def __init__(self, path: Path) -> None:
        self._out = open_writer(path, TOKEN_SCHEMA)
        self._waiting: list[pa.RecordBatch] = []
        self._count = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Append tokens; full row groups are written at once."""
        self._waiting.append(batch)
        self._count += batch.num_rows
        if self._count >= ROWS_PER_GROUP:
            self._write(self._count - self._count % ROWS_PER_GROUP)

    def close(self) -> None:
        """Write what is waiting and the footer."""
        if self._count:
            self._write(self._count)
        self._out.close()

    def abandon(self) -> None:
        """Close the file without what is waiting."""
        self._waiting = []
        # On a full disk the footer fails as well, and would hide the first error.
        with suppress(OSError):
            self._out.close()

    def _write(self, rows: int) -> None:
        table = pa.Table.from_batches(self._waiting, schema=TOKEN_SCHEMA)
        self._out.write_table(table.slice(0, rows).combine_chunks(), row_group_size=ROWS_PER_GROUP)
        rest = table.slice(rows).combine_chunks()
        self._waiting = rest.to_batches()
        self._count = rest.num_rows


class DocumentFile:
    """Collects document records and writes them in groups of bounded size."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._out = open_writer(path, schema)
        self._schema = schema
        self._records: list[dict[str, Any]] = []
        self._size = 0

    def add(self, record: dict[str, Any], size: int) -> None:
        """Append one record of about ``size`` bytes of text."""
        self._records.append(record)
        self._size += size
        if len(self._records) >= _DOCUMENTS_PER_GROUP or self._size >= _BYTES_PER_GROUP:
            self._write()

    def close(self) -> None:
        """Write what is waiting and the footer."""
        if self._records:
            self._write()
        self._out.close()

    def abandon(self) -> None:
        """Close the file without what is waiting."""
        self._records = []
        with suppress(OSError):
            self._out.close()

    def _write(self) -> None:
        self._out.write_table(pa.Table.from_pylist(self._records, schema=self._schema))
        self._records, self._size = [], 0


def open_writer(path: Path, schema: pa.Schema) -> Any:
    """A Parquet writer as the store uses it: zstd, statistics for every row group."""
    return pq.ParquetWriter(path, schema, compression="zstd", write_statistics=True)


def flush(path: Path) -> None:
    """Force a written file to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
