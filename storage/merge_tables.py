"""The token and document tables of several corpora as one, a batch of documents at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .document_fields import DOCUMENT_SCHEMA
from .errors import Damage
from .layout import StorePaths
from .tables import TableDocument, TableSummary, TableWriter, document_digest
from .token_table import TokenTable

#: Documents read at a time.
_DOCUMENTS = 1024


def join_tables(place: Path, roots: Sequence[Path], *, text: bool) -> TableSummary:
    """Write the tables of these stores, one behind the other, into the store at ``place``.

    Every token is valid in them; `tables.mark_invalid` says which are not.

    Parameters
    ----------
    text
        Whether to keep the documents' text.

    Raises
    ------
    Damage
        A document's tokens differ from its digest.
    """
    with TableWriter(StorePaths(place), text=text) as writer:
        for root in roots:
            _append(writer, root)
        return writer.finish()


def _append(writer: TableWriter, root: Path) -> None:
    table = TokenTable(root)
    with pq.ParquetFile(StorePaths(root).documents) as documents:
        own = [name for name in documents.schema_arrow.names if name not in DOCUMENT_SCHEMA.names]
        for batch in documents.iter_batches(batch_size=_DOCUMENTS):
            records = batch.to_pylist()
            first = int(records[0]["first_row"])
            last = int(records[-1]["first_row"] + records[-1]["n_tokens"])
            tokens = table.read_rows(first, last).combine_chunks()
            for record in records:
                begin = int(record["first_row"]) - first
                document = _document(record, tokens.slice(begin, int(record["n_tokens"])), own)
                if document_digest(document.token_ids) != record["digest"]:
                    raise Damage(
                        f"{root}: the tokens of document {record['document']} differ from its "
                        f"digest; run: depthscope verify {root}"
                    )
                writer.add(document)


def _document(record: dict[str, Any], tokens: pa.Table, own: Sequence[str]) -> TableDocument:
    def numbers(name: str) -> Any:
        return np.asarray(tokens.column(name).to_numpy())

    roles = tokens.column("role")
    return TableDocument(
        source=record["source"],
        line=record["line"],
        token_ids=numbers("token_id"),
        tokens=tokens.column("token").to_pylist(),
        char_start=numbers("char_start"),
        char_end=numbers("char_end"),
        special=numbers("special"),
        text=record.get("text"),
        roles=None if roles.null_count == len(roles) else roles.to_pylist(),
        # A field without a value was absent, or null: both are null in the column.
        fields={name: record[name] for name in own if record[name] is not None},
    )
