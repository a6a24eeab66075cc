"""SQL over a store, with activations, into files; whatever does not fit is refused by its size."""

from __future__ import annotations

import csv
from collections import Counter, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import xarray as xr
from depthscope.analysis import answers
from depthscope.analysis.query import query, run_query
from depthscope.analysis.store import open as open_store
from depthscope.storage.errors import RequestError

from .small_store import SmallStore, build

EVEN = np.arange(0, 100, 2)
SCATTERED = """
    SELECT token, row, difficulty FROM token_documents
    WHERE position > 1 ORDER BY hash(row)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    return build(tmp_path_factory.mktemp("query") / "s", committed=(0, 2, 3), invalid=(7,))


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches and several chunks, also for a small answer."""
    monkeypatch.setattr(answers, "CHUNK_ROWS", 3)
    monkeypatch.setattr(answers, "BATCH_BYTES", 2 * 8 * 4 * 7)


def check(store: SmallStore, row: Any, vectors: Any, points: list[int]) -> None:
    """Vectors are those of their rows, in the order of the answer."""
    wanted = store.h[points][:, np.asarray(row)]
    np.testing.assert_array_equal(np.asarray(vectors, dtype=np.float64), wanted)


def expected_rows(store: SmallStore) -> list[int]:
    return [row for row in store.visible.tolist() if store.position[row] > 1]


@pytest.mark.usefixtures("small_batches")
def test_parquet(store: SmallStore, tmp_path: Path) -> None:
    out = tmp_path / "rows.parquet"
    calls: list[tuple[int, int]] = []
    result = run_query(
        store.root, SCATTERED, [3, 1], out, progress=lambda *step: calls.append(step)
    )
    table = pq.read_table(out)
    assert table.column_names == ["token", "row", "difficulty", "residual_3", "residual_1"]
    assert sorted(table["row"].to_pylist()) == expected_rows(store)
    assert result.rows == len(expected_rows(store)) == table.num_rows
    assert table.schema.field("residual_3").type.list_size == 8
    vectors = [table[f"residual_{p}"].to_pylist() for p in (3, 1)]
    check(store, table["row"].to_pylist(), vectors, [3, 1])
    tokens = [store.token[row] for row in table["row"].to_pylist()]
    assert table["token"].to_pylist() == tokens
    assert calls[-1] == (result.rows, result.rows)
    assert len(calls) > 3


@pytest.mark.usefixtures("small_batches")
def test_npz(store: SmallStore, tmp_path: Path) -> None:
    out = tmp_path / "rows.npz"
    query(store.root, "SELECT row FROM tokens WHERE position > 1 ORDER BY row", "0,2", out)
    with np.load(out, allow_pickle=False) as found:
        assert set(found) == {"residual", "row", "point"}
        assert found["residual"].dtype == np.float32
        assert found["point"].tolist() == [0, 2]
        assert found["row"].tolist() == expected_rows(store)
        check(store, found["row"], found["residual"], [0, 2])
    query(store.root, SCATTERED, "all", out)
    with np.load(out, allow_pickle=False) as found:
        assert found["residual"].shape == (4, len(expected_rows(store)), 8)
        assert found["token"].tolist() == [store.token[row] for row in found["row"]]


@pytest.mark.usefixtures("small_batches")
def test_zarr(store: SmallStore, tmp_path: Path) -> None:
    out = tmp_path / "rows.zarr"
    for _ in range(2):
        query(store.root, SCATTERED, [1, 2], out)
    found = xr.open_zarr(out, consolidated=False)
    assert found.residual.dims == ("point", "row", "hidden")
    assert found.point.values.tolist() == [1, 2]
    assert sorted(found.row.values.tolist()) == expected_rows(store)
    check(store, found.row.values, found.residual.values, [1, 2])
    tokens = [store.token[row] for row in found.row.values.tolist()]
    assert found.token.values.tolist() == tokens
    difficulty = [
        np.nan if store.document[row] == 3 else store.document[row] for row in found.row.values
    ]
    np.testing.assert_array_equal(found.difficulty.values, difficulty)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.zarr"]


def test_csv(store: SmallStore, tmp_path: Path) -> None:
    out = tmp_path / "counts.csv"
    query(store.root, "SELECT token, count(*) AS n FROM tokens GROUP BY 1", out=out)
    with out.open(encoding="utf-8", newline="") as file:
        found = {line["token"]: int(line["n"]) for line in csv.DictReader(file)}
    assert found == Counter(store.token[row] for row in store.visible)


def test_a_table_for_printing(store: SmallStore) -> None:
    table = query(store.root, "SELECT row, valid FROM tokens WHERE document = 7 ORDER BY row", [2])
    assert table is not None
    wanted = [row for row in store.visible.tolist() if store.document[row] == 7]
    assert table["row"].tolist() == wanted
    assert not table["valid"].any()
    assert np.isnan(np.stack(table["residual_2"].tolist())).all()


def test_an_opened_selection_is_asked(store: SmallStore) -> None:
    run = open_store(store.root).where("position = 2")
    table = query(run, "SELECT row FROM tokens ORDER BY row", [0])
    assert table is not None
    assert table["row"].tolist() == [r for r in store.visible if store.position[r] == 2]


def test_an_empty_answer(store: SmallStore, tmp_path: Path) -> None:
    for name in ("a.parquet", "a.npz", "a.zarr"):
        result = run_query(store.root, "SELECT row FROM tokens WHERE false", [0], tmp_path / name)
        assert result.rows == 0
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 0
    assert xr.open_zarr(tmp_path / "a.zarr", consolidated=False).residual.shape == (1, 0, 8)
    table = query(store.root, "SELECT row FROM tokens WHERE false", [0])
    assert table is not None
    assert table.empty


def test_rows_may_repeat(store: SmallStore, tmp_path: Path) -> None:
    out = tmp_path / "rows.npz"
    query(store.root, "SELECT unnest([70, 3, 70]) AS row", [1], out)
    with np.load(out) as found:
        check(store, [70, 3, 70], found["residual"], [1])


def test_rows_that_are_not_stored_are_refused(tmp_path: Path) -> None:
    store = build(tmp_path / "s", activation_rows=EVEN, committed=(0, 1, 3))
    with pytest.raises(RequestError, match=r"row 1 .*activation_rows"):
        query(store.root, "SELECT row FROM tokens ORDER BY row", [0])
    table = query(store.root, "SELECT row FROM activation_rows ORDER BY row", [0])
    assert table is not None
    assert table["row"].tolist() == open_store(store.root).residual.row.values.tolist()
    check(store, table["row"], [table["residual_0"].tolist()], [0])


@pytest.mark.parametrize(
    ("sql", "points", "name", "message"),
    [
        ("SELEC row", None, None, "syntax"),
        ("SELECT rwo FROM tokens", None, None, "rwo"),
        ("SELECT 1; SELECT 2", None, None, "one SELECT"),
        ("DROP VIEW tokens", None, None, "one SELECT"),
        ("SELECT token FROM tokens", [0], None, "column called row"),
        ("SELECT token AS row FROM tokens", [0], None, "column called row"),
        ("SELECT CAST(NULL AS BIGINT) AS row", [0], None, "nulls"),
        ("SELECT row, 1 AS residual_0 FROM tokens", [0], None, "residual_0"),
        ("SELECT row FROM tokens", [9], None, "point 9 .*0, 1, 2, 3"),
        ("SELECT row FROM tokens", "some", None, "0,8,16"),
        ("SELECT row FROM tokens", [0], "a.csv", "no vectors"),
        ("SELECT row FROM tokens", None, "a.xlsx", r"\.parquet"),
        ("SELECT row FROM tokens", None, "missing/a.csv", "no folder"),
        ("SELECT row FROM tokens WHERE error('late') IS NULL", None, "a.csv", "late"),
    ],
)
def test_bad_requests(
    store: SmallStore, tmp_path: Path, sql: str, points: Any, name: str | None, message: str
) -> None:
    out = None if name is None else tmp_path / name
    with pytest.raises(RequestError, match=message) as caught:
        query(store.root, sql, points, out)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_answer_larger_than_memory(
    store: SmallStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = namedtuple("memory", "available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(1000))
    sql = "SELECT row FROM tokens"
    for out in (tmp_path / "a.npz", None):
        with pytest.raises(RequestError, match=r"needs 0\.0 GB.*0\.0 GB.*\.parquet"):
            query(store.root, sql, [0, 1], out)
    for name in ("a.parquet", "a.zarr"):
        query(store.root, sql, [0, 1], tmp_path / name)


def test_several_stores(store: SmallStore, tmp_path: Path) -> None:
    other = build(tmp_path / "t", seed=5, lengths=(10, 4), task_rows=8)
    sql = "SELECT row, store, line FROM token_documents WHERE position = 3 ORDER BY row"
    table = query([store.root, other.root], sql, [2])
    assert table is not None
    mine = [r for r in store.visible if store.position[r] == 3]
    assert table["row"].tolist() == [*mine, 103, 113]
    assert table["store"].tolist() == [0] * len(mine) + [1, 1]
    check(other, [3, 13], [table["residual_2"].tolist()[-2:]], [2])
