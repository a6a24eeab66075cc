"""The token table and the document table of a store.

``tokens.parquet`` has one row per token, ``documents.parquet`` one per document; both are sorted,
written in one streaming pass, and the same bytes for the same input. They are written under
temporary names, flushed, and published together by a rename.

Memory: one row group of tokens (64k rows), one batch of documents (about 16 MiB of text).
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3
from numpy.typing import NDArray

from .atomic import sync_folder
from .document_fields import DOCUMENT_SCHEMA, TOKEN_SCHEMA, FieldColumns
from .layout import StorePaths
from .table_files import ROWS_PER_GROUP, DocumentFile, TokenFile, flush, open_writer


@dataclass(frozen=True)
class TableDocument:
    """One tokenised document on its way into the tables.

    All sequences have one entry per token. ``char_start`` and ``char_end`` are offsets in ``text``
    in characters, -1 where the tokenizer cannot tell.
    """

    source: str
    line: int
    token_ids: NDArray[np.int32]
    tokens: Sequence[str | None]
    char_start: NDArray[np.int32]
    char_end: NDArray[np.int32]
    special: NDArray[np.bool_]
    text: str | None = None
    roles: Sequence[str | None] | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TableSummary:
    """What the finished tables hold; ``digest`` covers token ids and document borders."""

    rows: int
    documents: int
    digest: str


def document_digest(token_ids: NDArray[np.int32]) -> str:
    """blake3 (32 hex digits) of a document's token ids as little-endian int32."""
    return blake3(np.asarray(token_ids, dtype="<i4").tobytes()).hexdigest(length=16)


class TableWriter:
    """Writes both tables; a context manager that removes its temporary files on an error.

    Parameters
    ----------
    paths
        The store. Temporary files lie in its ``partial`` folder.
    text
        Whether ``documents.parquet`` keeps the documents' text, and ``tokens.parquet`` the tokens'
        strings.
    """

    def __init__(self, paths: StorePaths, *, text: bool = True) -> None:
        self._paths = paths
        self._text = text
        self._fields = FieldColumns()
        self._rows = 0
        self._documents = 0
        self._digest = blake3()
        self._summary: TableSummary | None = None
        self._folder = paths.partial / f"tables-{secrets.token_hex(6)}"
        self._folder.mkdir(parents=True)
        self._tokens = TokenFile(self._folder / paths.tokens.name)
        self._spill = DocumentFile(self._folder / "spill.parquet", _spill_schema(text))

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def add(self, document: TableDocument) -> None:
        """Append one document; its rows follow those of the document before."""
        ids = np.asarray(document.token_ids, dtype="<i4")
        count = len(ids)
        self._digest.update(count.to_bytes(8, "little") + ids.tobytes())
        self._tokens.add(_token_columns(document, self._documents, self._rows, self._text))
        record: dict[str, Any] = {
            "document": self._documents,
            "source": document.source,
            "line": document.line,
            "first_row": self._rows,
            "n_tokens": count,
            "digest": document_digest(ids),
        }
        if self._text:
            record["text"] = document.text
        record["fields"] = self._fields.encode(document.fields)
        size = len(record["fields"]) + len(document.text or "" if self._text else "")
        self._spill.add(record, size)
        self._rows += count
        self._documents += 1

    def finish(self) -> TableSummary:
        """Complete and flush both files under their temporary names, without publishing them."""
        if self._summary is None:
            self._tokens.close()
            self._spill.close()
            self._write_documents()
            for name in (self._paths.tokens.name, self._paths.documents.name):
                flush(self._folder / name)
            self._summary = TableSummary(self._rows, self._documents, self._digest.hexdigest())
        return self._summary

    def close(self) -> TableSummary:
        """Finish and publish both files, replacing what bore their names."""
        summary = self.finish()
        for final in (self._paths.tokens, self._paths.documents):
            (self._folder / final.name).replace(final)
        sync_folder(self._paths.root)
        self.discard()
        return summary

    def discard(self) -> None:
        """Remove everything temporary; published files stay."""
        self._tokens.abandon()
        self._spill.abandon()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write_documents(self) -> None:
        spill = pq.ParquetFile(self._folder / "spill.parquet")
        fixed = [f for f in DOCUMENT_SCHEMA if self._text or f.name != "text"]
        schema = pa.schema([*fixed, *self._fields.schema()])
        with open_writer(self._folder / self._paths.documents.name, schema) as out:
            for group in range(spill.num_row_groups):
                batch = spill.read_row_group(group)
                own = self._fields.decode(batch.column("fields").to_pylist())
                columns = [batch.column(f.name) for f in fixed]
                out.write_table(pa.table([*columns, *own], schema=schema))
        spill.close()


def mark_invalid(root: Path, documents: Iterable[int], *, anew: bool = False) -> None:
    """Set ``valid`` to false for every token of these documents, replacing the file atomically.

    Documents marked before stay marked, unless ``anew``; the same set in any order gives the same
    bytes.
    """
    paths = StorePaths(Path(root))
    chosen = np.array(sorted(set(documents)), dtype=np.int64)
    if not len(chosen) and not (anew and _any_marked(paths.tokens)):
        return
    paths.partial.mkdir(exist_ok=True)
    temporary = paths.partial / f"{paths.tokens.name}-{secrets.token_hex(6)}"
    try:
        with pq.ParquetFile(paths.tokens) as source, open_writer(temporary, TOKEN_SCHEMA) as out:
            for group in range(source.num_row_groups):
                table = source.read_row_group(group)
                keep = ~np.isin(table.column("document").to_numpy(), chosen)
                valid = pa.array(keep if anew else keep & table.column("valid").to_numpy())
                table = table.set_column(table.num_columns - 1, TOKEN_SCHEMA.field("valid"), valid)
                out.write_table(table, row_group_size=ROWS_PER_GROUP)
        flush(temporary)
        temporary.replace(paths.tokens)
        sync_folder(paths.root)
    finally:
        temporary.unlink(missing_ok=True)


def _any_marked(tokens: Path) -> bool:
    """Whether a token is invalid, from the file's statistics."""
    with pq.ParquetFile(tokens) as file:
        column = file.schema_arrow.get_field_index("valid")
        groups = range(file.metadata.num_row_groups)
        return not all(file.metadata.row_group(g).column(column).statistics.min for g in groups)


def _token_columns(
    document: TableDocument, number: int, first_row: int, text: bool
) -> pa.RecordBatch:
    count = len(document.token_ids)
    return pa.record_batch(
        [
            pa.array(np.arange(first_row, first_row + count, dtype=np.int64)),
            pa.array(np.full(count, number, dtype=np.int64)),
            pa.array(np.arange(count, dtype=np.int32)),
            pa.array(np.asarray(document.token_ids, dtype=np.int32)),
            pa.array(document.tokens, type=pa.string()) if text else pa.nulls(count, pa.string()),
            pa.array(np.asarray(document.char_start, dtype=np.int32)),
            pa.array(np.asarray(document.char_end, dtype=np.int32)),
            pa.array(np.asarray(document.special, dtype=np.bool_)),
            pa.nulls(count, pa.string())
            if document.roles is None
            else pa.array(document.roles, type=pa.string()),
            pa.array(np.ones(count, dtype=np.bool_)),
        ],
        schema=TOKEN_SCHEMA,
    )


def _spill_schema(text: bool) -> pa.Schema:
    fixed = [f for f in DOCUMENT_SCHEMA if text or f.name != "text"]
    return pa.schema([*fixed, ("fields", pa.string())])
