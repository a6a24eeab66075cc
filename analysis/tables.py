"""The token and document tables of the opened stores in DuckDB.

Two views, ``tokens`` and ``documents``, show the visible rows only; a third, ``token_documents``,
has the fields of each token's document beside it and is what predicates speak of;
``activation_rows`` lists the rows whose activations are stored. DuckDB reads the Parquet files in
place and spills to disk, so a statement over a corpus of any size runs in bounded memory.
"""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths
from numpy.typing import NDArray

from .rows import RowAxis
from .snapshot import Snapshot

#: A store with more holes than this between its committed rows looks tasks up in a table.
MOST_RANGES = 64


def connect(
    snapshots: Sequence[Snapshot], selected: NDArray[np.int64] | None = None
) -> duckdb.DuckDBPyConnection:
    """A connection with the views over these stores, restricted to ``selected`` corpus rows."""
    connection = duckdb.connect(config={"temp_directory": tempfile.gettempdir()})
    several = len(snapshots) > 1
    tokens, documents = [], []
    for snapshot in snapshots:
        _keep_numbers(connection, f"tasks_{snapshot.index}", "task", snapshot.tasks)
        _keep_numbers(connection, f"invalid_{snapshot.index}", "document", snapshot.invalid)
        tokens.append(_tokens_of(snapshot, several))
        documents.append(_documents_of(snapshot, several))
    where = ""
    if selected is not None:
        _keep_numbers(connection, "selected_rows", "row", selected)
        where = " WHERE row IN (SELECT row FROM selected_rows)"
    union = " UNION ALL BY NAME "
    connection.execute(f"CREATE VIEW tokens AS SELECT * FROM ({union.join(tokens)}){where}")
    seen = "" if selected is None and all(snapshot.whole for snapshot in snapshots) else (
        " WHERE document IN (SELECT document FROM tokens)"
    )  # fmt: skip
    connection.execute(f"CREATE VIEW documents AS SELECT * FROM ({union.join(documents)}){seen}")
    hidden = "document, store" if several else "document"
    connection.execute(
        "CREATE VIEW token_documents AS SELECT tokens.*, documents.* "
        f"EXCLUDE ({hidden}) FROM tokens JOIN documents USING (document)"
    )
    return connection


def add_activation_rows(connection: duckdb.DuckDBPyConnection, axis: RowAxis) -> None:
    """Make the view of the rows whose activations are stored."""
    index = axis.index
    if isinstance(index, pd.RangeIndex):
        rows = f"SELECT range AS row FROM range({index.start}, {index.stop})"
        connection.execute(f"CREATE VIEW activation_rows AS {rows}")
    else:
        _keep_numbers(connection, "activation_rows", "row", index.to_numpy())


def select(connection: duckdb.DuckDBPyConnection, text: str) -> duckdb.DuckDBPyRelation:
    """The answer to one SELECT statement, not yet computed.

    Raises
    ------
    RequestError
        It is no SQL, no single SELECT, or names what is not there.
    """
    try:
        statements = connection.extract_statements(text)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise RequestError(f"the SQL must be one SELECT statement: {_short(text)}")
        return connection.sql(text)
    except duckdb.Error as error:
        raise sql_error(text, error) from error


def matching_rows(connection: duckdb.DuckDBPyConnection, predicate: str) -> NDArray[np.int64]:
    """Ascending rows for which a predicate over tokens and their documents holds.

    Raises
    ------
    RequestError
        The predicate is no SQL, names an unknown column, or is not true or false.
    """
    if not predicate.strip():
        raise RequestError(
            "the predicate is empty; write one such as: NOT special AND position > 0"
        )
    relation = None
    # Most predicates speak of tokens only, and then need no join.
    for view in ("tokens", "token_documents"):
        try:
            relation = select(connection, f"SELECT row, (\n{predicate}\n) AS holds FROM {view}")
            break
        except RequestError as error:
            if view == "token_documents":
                message = str(error.__cause__ or error).splitlines()[0]
                raise RequestError(f"the predicate {_short(predicate)!r}: {message}") from error
    assert relation is not None
    if [str(kind) for kind in relation.types] != ["BIGINT", "BOOLEAN"]:
        raise RequestError(f"the predicate {_short(predicate)!r} is not true or false for a token")
    try:
        found = relation.filter("holds").project("row").fetchnumpy()["row"]
    except duckdb.Error as error:
        raise sql_error(predicate, error) from error
    return np.sort(np.asarray(found, dtype=np.int64))


def sql_error(text: str, error: duckdb.Error) -> RequestError:
    """DuckDB's complaint in one line."""
    return RequestError(f"the SQL {_short(text)!r}: {str(error).splitlines()[0]}")


def _tokens_of(snapshot: Snapshot, several: bool) -> str:
    changed = []
    if snapshot.row_offset:
        changed.append(f"row + {snapshot.row_offset} AS row")
    if snapshot.document_offset:
        changed.append(f"document + {snapshot.document_offset} AS document")
    if snapshot.invalid:
        failed = f"SELECT document FROM invalid_{snapshot.index}"
        changed.append(f"valid AND document NOT IN ({failed}) AS valid")
    where = "" if snapshot.whole else f" WHERE {_committed(snapshot)}"
    return _from_file(StorePaths(snapshot.root).tokens, snapshot, several, changed, where)


def _committed(snapshot: Snapshot) -> str:
    ranges = snapshot.row_ranges
    if len(ranges) > MOST_RANGES:
        size = snapshot.record.task_rows
        return f"row // {size} IN (SELECT task FROM tasks_{snapshot.index})"
    # Unlike a join, ranges keep the order of the file and skip row groups.
    terms = (f"row BETWEEN {first} AND {last - 1}" for first, last in ranges)
    return " OR ".join(terms) or "false"


def _documents_of(snapshot: Snapshot, several: bool) -> str:
    changed = []
    if snapshot.index:
        changed.append(f"document + {snapshot.document_offset} AS document")
        changed.append(f"first_row + {snapshot.row_offset} AS first_row")
    return _from_file(StorePaths(snapshot.root).documents, snapshot, several, changed, "")


def _from_file(
    path: Path, snapshot: Snapshot, several: bool, changed: Sequence[str], where: str
) -> str:
    replace = f" REPLACE ({', '.join(changed)})" if changed else ""
    store = f", {snapshot.index} AS store" if several else ""
    name = glob.escape(str(path)).replace("'", "''")
    # The alias keeps the file's own columns in reach of the filter, before they are renumbered.
    inner = f"SELECT * FROM read_parquet('{name}'){where}"
    return f"SELECT *{replace}{store} FROM ({inner})"


def _keep_numbers(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    column: str,
    numbers: Sequence[int] | NDArray[np.int64],
) -> None:
    values = pa.table({column: pa.array(np.asarray(numbers, dtype=np.int64))})
    connection.register("numbers_in", values)
    connection.execute(f"CREATE TABLE {table} AS SELECT * FROM numbers_in")
    connection.unregister("numbers_in")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:197]}…"
