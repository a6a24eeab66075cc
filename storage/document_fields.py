"""The corpus's own fields as columns of ``documents.parquet``.

A column's type is known only once the last record has been seen (line 9,000,000 may hold a word
where all others held a number), so documents are spilled to a temporary Parquet file with their
fields as JSON, the kinds seen are counted on the way, and a second pass writes the typed columns.
Memory is one batch of documents; cost is linear.

A column is boolean, int64 or float64 where all its values are, and text otherwise; text columns
keep strings as they are and everything else as JSON. Nulls and absent fields are null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

#: Columns of ``documents.parquet`` that are always there (``text`` unless it was left out).
DOCUMENT_SCHEMA = pa.schema(
    [
        ("document", pa.int64()),
        ("source", pa.string()),
        ("line", pa.int64()),
        ("first_row", pa.int64()),
        ("n_tokens", pa.int64()),
        ("digest", pa.string()),
        ("text", pa.string()),
    ]
)

#: Columns of ``tokens.parquet``.
TOKEN_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("document", pa.int64()),
        ("position", pa.int32()),
        ("token_id", pa.int32()),
        ("token", pa.string()),
        ("char_start", pa.int32()),
        ("char_end", pa.int32()),
        ("special", pa.bool_()),
        ("role", pa.string()),
        ("valid", pa.bool_()),
    ]
)

#: Lower-case names no field may have: predicates join both tables, and SQL ignores case.
TABLE_COLUMNS = frozenset(DOCUMENT_SCHEMA.names) | frozenset(TOKEN_SCHEMA.names)

_LARGEST_EXACT_FLOAT = 2**53


class FieldColumns:
    """Names and kinds of the fields seen so far, in order of first appearance."""

    def __init__(self) -> None:
        self._columns: dict[str, str] = {}
        self._taken = set(TABLE_COLUMNS)
        self._kinds: dict[str, set[str]] = {}

    def encode(self, fields: Mapping[str, Any]) -> str:
        """Note one document's fields and give them back as one line of JSON."""
        plain = {}
        for name, value in fields.items():
            if name not in self._columns:
                self._columns[name] = self._free_name(name)
                self._kinds[name] = set()
            value = _plain(value)
            if value is not None:
                self._kinds[name].add(_kind(value))
            plain[name] = value
        return json.dumps(plain)

    def schema(self) -> pa.Schema:
        """The columns with the types that hold every value seen."""
        return pa.schema(
            [(self._columns[name], _column_type(k)) for name, k in self._kinds.items()]
        )

    def decode(self, encoded: Sequence[str]) -> list[pa.Array]:
        """Typed columns of a batch of documents, in the order of ``schema``."""
        records = [json.loads(line) for line in encoded]
        arrays = []
        for name, kinds in self._kinds.items():
            kind = _column_type(kinds)
            values = [record.get(name) for record in records]
            if kind == pa.string():
                values = [None if v is None else _as_text(v) for v in values]
            elif kind == pa.float64():
                values = [None if v is None else float(v) for v in values]
            arrays.append(pa.array(values, type=kind))
        return arrays

    def _free_name(self, name: str) -> str:
        column = _sound(name)
        while not column or column.lower() in self._taken:
            column = f"field_{column}"
        self._taken.add(column.lower())
        return column


def _plain(value: Any) -> Any:
    """A value that JSON can carry; dates, decimals and bytes become text."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return _sound(value)
    if isinstance(value, Mapping):
        return {_sound(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return _sound(str(value))


def _sound(text: str) -> str:
    # JSON escapes may spell half a surrogate pair, which no UTF-8 file can hold.
    return text.encode("utf-8", "replace").decode("utf-8")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            return "text"
        return "int" if abs(value) <= _LARGEST_EXACT_FLOAT else "wide"
    return "float" if isinstance(value, float) else "text"


def _column_type(kinds: set[str]) -> pa.DataType:
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds and kinds <= {"int", "wide"}:
        return pa.int64()
    if kinds and kinds <= {"int", "float"}:
        return pa.float64()
    return pa.string()


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False)
