"""Choosing rows: by a SQL predicate over the token table, or by a seeded draw of whole documents.

A predicate is one boolean expression over the columns of ``tokens.parquet`` and
``documents.parquet``, such as ``NOT special AND position % 4 = 0``. DuckDB evaluates it over the
Parquet files, reading only the columns it mentions; documents are joined only where it mentions
one of theirs. It may read nothing but these two files, and must give the same answer every time.
Memory: 8 bytes a chosen row, and DuckDB's own, which spills to disk beyond a bound.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from .errors import RequestError
from .layout import StorePaths
from .sampling import sample_keys
from .token_table import TokenTable

Rows = NDArray[np.int64]

_TOKENS = "tokens"
_JOINED = "tokens JOIN documents USING (document)"
_MEMORY_LIMIT = "2GB"
_CLOCKS = {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}


def select_rows(root: Path | str, predicate: str) -> Rows:
    """The rows for which the predicate is true, ascending int64.

    Raises
    ------
    RequestError
        Where the predicate is not one boolean expression over the tables' columns, reads anything
        else, or could answer differently next time (``random()``, ``now()``).
    """
    paths = StorePaths(Path(root))
    with _connection(paths) as connection:
        tree = _parsed(connection, predicate)
        _refuse_unstable(connection, predicate, tree)
        source = _source(connection, predicate)
        query = f"SELECT row FROM {source} WHERE ({predicate}\n)"
        try:
            rows = np.asarray(connection.execute(query).fetchnumpy()["row"], dtype=np.int64)
        except duckdb.Error as error:
            raise _refusal(predicate, f"cannot be used ({_first_line(error)})") from error
    # A scan keeps the order of the file; a join, or several threads, need not.
    return rows if _ascending(rows) else np.sort(rows)


def sample_documents(documents: int, count: int, seed: int) -> Rows:
    """``count`` of the documents 0..documents-1 drawn at random, ascending int64.

    All of them where there are fewer. A larger draw with the same seed contains every smaller one.
    """
    keys = sample_keys(np.arange(documents, dtype=np.int64), seed)
    return np.sort(np.argsort(keys, kind="stable")[: max(count, 0)]).astype(np.int64)


@contextmanager
def _connection(paths: StorePaths) -> Iterator[Any]:
    """A database that sees the store's two tables and can open nothing else."""
    # Missing or broken tables are named before DuckDB sees them.
    TokenTable(paths.root).check_readable()
    with (
        tempfile.TemporaryDirectory(prefix="depthscope-") as scratch,
        duckdb.connect(":memory:") as connection,
    ):
        connection.execute(f"SET temp_directory = {_quoted(scratch)}")
        connection.execute(f"SET memory_limit = '{_MEMORY_LIMIT}'")
        files = {"tokens": str(paths.tokens), "documents": str(paths.documents)}
        allowed = ", ".join(_quoted(file) for file in files.values())
        connection.execute(f"SET allowed_paths = [{allowed}]")
        connection.execute(f"SET allowed_directories = [{_quoted(scratch)}]")
        for name, file in files.items():
            connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet({_quoted(file)})")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        yield connection


def _parsed(connection: Any, predicate: str) -> Any:
    """The predicate's syntax tree, once it is sure to be one expression and nothing more."""
    if not predicate.strip():
        raise RequestError("the predicate is empty; give one such as 'NOT special'")
    parsed = _syntax(connection, predicate)
    if parsed["error"]:
        reason = str(parsed.get("error_message")).splitlines()[0]
        raise _refusal(predicate, f"is no SQL expression ({reason})")
    # Whatever the predicate brings along beside its expression (UNION, ORDER BY, …) shows as a
    # difference to the plainest query of this form.
    trees = [part["statements"] for part in (parsed, _syntax(connection, "true"))]
    wheres = [tree[0]["node"].pop("where_clause", None) for tree in trees]
    if _bare(trees[0]) != _bare(trees[1]):
        raise _refusal(predicate, "must be one boolean expression and nothing more")
    return wheres[0]


def _syntax(connection: Any, predicate: str) -> Any:
    query = f"SELECT row FROM tokens WHERE ({predicate}\n)"
    return json.loads(
        connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchone()[0]
    )


def _bare(value: Any) -> Any:
    """A syntax tree without the places where its parts stand in the text."""
    if isinstance(value, dict):
        return {k: _bare(v) for k, v in value.items() if not k.startswith("query_location")}
    return [_bare(item) for item in value] if isinstance(value, list) else value


def _refuse_unstable(connection: Any, predicate: str, tree: Any) -> None:
    """Refuse what would choose other rows the next time."""
    functions = connection.execute(
        "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"
    ).fetchall()
    unstable = {name for (name,) in functions}
    for node in _nodes(tree):
        name = str(node.get("function_name", "")).lower()
        # SQL's names for the time need no brackets, and so look like columns.
        column = str((node.get("column_names") or [""])[-1]).lower()
        if name in unstable or column in _CLOCKS:
            raise _refusal(
                predicate,
                f"uses {name or column}, which answers differently each time; "
                "hash(row) % 10 = 0 picks a tenth of the rows for good",
            )
        if node.get("sample") is not None:
            raise _refusal(predicate, "draws a sample, which differs each time")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for child in tree:
            yield from _nodes(child)


def _source(connection: Any, predicate: str) -> str:
    """What to select from: the tokens alone if they have every column the predicate mentions."""
    for source in (_TOKENS, _JOINED):
        try:
            kind = _type_of(connection, predicate, source)
        except duckdb.Error as error:
            if source == _TOKENS and isinstance(error, duckdb.BinderException):
                continue
            reason = _first_line(error) + _columns_hint(connection, error)
            raise _refusal(predicate, f"cannot be used ({reason})") from error
        if kind != "BOOLEAN":
            raise _refusal(
                predicate, f"must be true or false for each token, but its type is {kind}"
            )
        return source
    raise AssertionError("the joined tables either bind or raise")


def _columns_hint(connection: Any, error: Exception) -> str:
    if "not found" not in str(error):
        return ""
    names = [row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {_JOINED}").fetchall()]
    return f" The columns are {', '.join(names)}."


def _type_of(connection: Any, predicate: str, source: str) -> str:
    answer = connection.execute(f"DESCRIBE SELECT ({predicate}\n) AS answer FROM {source}")
    return str(answer.fetchone()[1])


def _refusal(predicate: str, why: str) -> RequestError:
    return RequestError(f"the predicate {' '.join(predicate.split())!r} {why}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _ascending(rows: Rows) -> bool:
    return bool((rows[1:] > rows[:-1]).all())
