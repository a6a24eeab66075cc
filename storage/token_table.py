"""Reading the token and document tables a few rows at a time.

Only the row groups that hold the wanted rows are read, and only the wanted columns, so a worker's
look-up costs the same in a store of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .errors import Damage, RequestError
from .layout import StorePaths

Spans = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


class TokenTable:
    """``tokens.parquet`` and ``documents.parquet`` of one store.

    Opening reads the two files' footers only. Row numbers are the store's corpus rows.
    """

    def __init__(self, root: Path | str) -> None:
        self._paths = StorePaths(Path(root))

    @property
    def rows(self) -> int:
        """Number of tokens."""
        return int(self._tokens.num_rows)

    @property
    def documents(self) -> int:
        """Number of documents, those without tokens included."""
        return int(self._documents.num_rows)

    def check_readable(self) -> None:
        """Raise what is wrong with the two files, if they cannot be opened."""
        _ = self._tokens, self._documents

    @property
    def document_columns(self) -> list[str]:
        """Names of the columns of ``documents.parquet``."""
        return list(self._documents.schema.to_arrow_schema().names)

    def read_rows(
        self, first_row: int, last_row: int, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Token rows [first_row, last_row), all columns or the named ones."""
        first_row, last_row = max(first_row, 0), min(last_row, self.rows)
        starts = self._group_starts
        if first_row >= last_row:
            return (
                self._file("tokens")
                .schema_arrow.empty_table()
                .select(list(columns) if columns is not None else self._token_names)
            )
        first = int(np.searchsorted(starts, first_row, side="right")) - 1
        last = int(np.searchsorted(starts, last_row, side="left"))
        with self._file("tokens") as file:
            table = file.read_row_groups(range(first, last), columns=_listed(columns))
        return table.slice(first_row - int(starts[first]), last_row - first_row)

    def token_ids(self, first_row: int, last_row: int) -> NDArray[np.int32]:
        """Token ids of rows [first_row, last_row), int32."""
        column = self.read_rows(first_row, last_row, ["token_id"]).column(0)
        return _numbers(column).astype(np.int32, copy=False)

    def read_documents(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The document table, all columns or the named ones."""
        with self._file("documents") as file:
            return file.read(columns=_listed(columns))

    def document_spans(self, first_row: int = 0, last_row: int | None = None) -> Spans:
        """Documents with a token in rows [first_row, last_row).

        Returns
        -------
        document, first_row, n_tokens
            int64 arrays, ascending; documents without tokens are left out.
        """
        last_row = self.rows if last_row is None else min(last_row, self.rows)
        first_row = max(first_row, 0)
        none = np.empty(0, dtype=np.int64)
        if first_row >= last_row:
            return none, none, none
        starts = self._document_group_starts
        # A group's rows end where the next begins; equal starts are groups without tokens.
        first = max(int(np.searchsorted(starts, first_row, side="left")) - 1, 0)
        last = int(np.searchsorted(starts, last_row, side="left"))
        with self._file("documents") as file:
            table = file.read_row_groups(
                range(first, last), columns=["document", "first_row", "n_tokens"]
            )
        document, start, count = (_numbers(table.column(i)) for i in range(3))
        wanted = (start < last_row) & (start + count > first_row) & (count > 0)
        return document[wanted], start[wanted], count[wanted]

    def document_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The document of each of these rows (any order), int64."""
        document, start, _ = self.document_spans()
        return document[np.searchsorted(start, rows, side="right") - 1]

    @cached_property
    def _tokens(self) -> Any:
        return _footer(self._paths.tokens)

    @cached_property
    def _documents(self) -> Any:
        return _footer(self._paths.documents)

    @property
    def _token_names(self) -> list[str]:
        return list(self._tokens.schema.to_arrow_schema().names)

    @cached_property
    def _group_starts(self) -> NDArray[np.int64]:
        footer = self._tokens
        counts = [footer.row_group(g).num_rows for g in range(footer.num_row_groups)]
        return np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)

    @cached_property
    def _document_group_starts(self) -> NDArray[np.int64]:
        footer = self._documents
        column = footer.schema.to_arrow_schema().get_field_index("first_row")
        starts = [
            footer.row_group(g).column(column).statistics.min for g in range(footer.num_row_groups)
        ]
        return np.array(starts, dtype=np.int64)

    def _file(self, which: str) -> Any:
        path, footer = (
            (self._paths.tokens, self._tokens)
            if which == "tokens"
            else (self._paths.documents, self._documents)
        )
        return pq.ParquetFile(path, metadata=footer)


def _footer(path: Path) -> Any:
    try:
        return pq.read_metadata(path)
    except FileNotFoundError:
        raise RequestError(f"{path}: no such file; is {path.parent} a store?") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise Damage(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error


def _numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column of numbers; arrow's own to_numpy would load pandas into every worker."""
    chunks = [np.from_dlpack(chunk) for chunk in column.chunks]
    return np.concatenate([np.empty(0, column.type.to_pandas_dtype()), *chunks])


def _listed(columns: Sequence[str] | None) -> list[str] | None:
    return None if columns is None else list(columns)
