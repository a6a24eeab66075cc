"""The two tables: types, borders, bounded reads, determinism, publishing."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from depthscope.storage.errors import Damage, RequestError
from depthscope.storage.layout import StorePaths
from depthscope.storage.tables import TableDocument, TableSummary, TableWriter, mark_invalid
from depthscope.storage.token_table import TokenTable


def document(
    ids: Sequence[int], number: int = 0, fields: dict[str, Any] | None = None
) -> TableDocument:
    array = np.array(ids, dtype=np.int32)
    return TableDocument(
        source="c.jsonl",
        line=number + 1,
        token_ids=array,
        tokens=[f"<{n}>" for n in ids],
        char_start=array * 2,
        char_end=array * 2 + 1,
        special=array == 0,
        text=f"text {number}",
        fields=fields or {},
    )


def write(root: Path, documents: Sequence[TableDocument], **options: Any) -> TableSummary:
    root.mkdir(parents=True, exist_ok=True)
    with TableWriter(StorePaths(root), **options) as writer:
        for entry in documents:
            writer.add(entry)
        return writer.finish()


def random_lengths(count: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.choice([0, 1, 2, 5, 30, 200]) for _ in range(count)]


def make(root: Path, lengths: Sequence[int]) -> list[list[int]]:
    ids = [[(7 * d + p) % 1000 for p in range(n)] for d, n in enumerate(lengths)]
    write(root, [document(row, d) for d, row in enumerate(ids)])
    return ids


def columns_of(root: Path, values: Sequence[dict[str, Any]], **options: Any) -> pa.Table:
    write(root, [document([1], n, fields) for n, fields in enumerate(values)], **options)
    return TokenTable(root).read_documents()


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([1, 2, None], pa.int64(), [1, 2, None]),
        ([1, 2.5, None], pa.float64(), [1.0, 2.5, None]),
        ([True, False, None], pa.bool_(), [True, False, None]),
        (["a", None, "é"], pa.string(), ["a", None, "é"]),
        ([1, "a", True], pa.string(), ["1", "a", "true"]),
        ([1.5, "1.50", float("nan")], pa.string(), ["1.5", "1.50", "nan"]),
        ([True, 1, 0], pa.string(), ["true", "1", "0"]),
        ([2**62, 1, -5], pa.int64(), [2**62, 1, -5]),
        ([2**62, 0.5, 1], pa.string(), [str(2**62), "0.5", "1"]),
        ([2**70, 1, None], pa.string(), [str(2**70), "1", None]),
        ([None, None, None], pa.string(), [None, None, None]),
        ([{"a": [1, "é"]}, [1, 2], []], pa.string(), ['{"a": [1, "é"]}', "[1, 2]", "[]"]),
        (["a\ud800", "b", b"raw"], pa.string(), ["a?", "b", "b'raw'"]),
    ],
)
def test_a_field_gets_the_type_that_holds_all_its_values(
    tmp_path: Path, values: list[Any], kind: pa.DataType, expected: list[Any]
) -> None:
    for number, order in enumerate(itertools.permutations(range(3))):
        table = columns_of(tmp_path / str(number), [{"x": values[i]} for i in order])
        assert table.schema.field("x").type == kind
        found = table.column("x").to_pylist()
        for value, i in zip(found, order, strict=True):
            assert value == expected[i]


def test_float_columns_keep_values_that_are_no_numbers(tmp_path: Path) -> None:
    table = columns_of(tmp_path, [{"x": 1.5}, {"x": float("nan")}, {"x": float("-inf")}])
    found = table.column("x").to_pylist()
    assert found[0] == 1.5
    assert np.isnan(found[1])
    assert found[2] == float("-inf")


def test_fields_may_come_and_go(tmp_path: Path) -> None:
    table = columns_of(tmp_path, [{"a": 1}, {"b": "x", "a": 2}, {}])
    assert table.schema.names[-2:] == ["a", "b"]
    assert table.column("a").to_pylist() == [1, 2, None]
    assert table.column("b").to_pylist() == [None, "x", None]


def test_fields_never_take_a_tables_name(tmp_path: Path) -> None:
    fields = {"text": 1, "Document": 2, "token": 3, "field_text": 4, "TEXT": 5, "": 6, "role": 7}
    table = columns_of(tmp_path, [fields])
    own = table.schema.names[7:]
    assert [n.lower() for n in own] == [n.lower() for n in dict.fromkeys(own)]
    assert own[:4] == ["field_text", "field_Document", "field_token", "field_field_text"]
    assert [table.column(name)[0].as_py() for name in own] == [1, 2, 3, 4, 5, 6, 7]
    assert len({name.lower() for name in table.schema.names}) == len(table.schema.names)
    assert not {name.lower() for name in own} & set(
        TokenTable(tmp_path).read_rows(0, 1).schema.names
    )


def test_text_can_be_left_out(tmp_path: Path) -> None:
    table = columns_of(tmp_path, [{"a": 1}], text=False)
    assert table.schema.names == [
        "document",
        "source",
        "line",
        "first_row",
        "n_tokens",
        "digest",
        "a",
    ]


def test_every_row_knows_its_document(tmp_path: Path) -> None:
    ids = make(tmp_path, random_lengths(300, 1))
    table = TokenTable(tmp_path)
    rows = table.read_rows(0, table.rows).to_pydict()
    flat = [(d, p, n) for d, row in enumerate(ids) for p, n in enumerate(row)]
    assert rows["row"] == list(range(len(flat)))
    assert list(zip(rows["document"], rows["position"], rows["token_id"], strict=True)) == flat
    assert rows["char_end"] == [2 * n + 1 for *_, n in flat]
    assert rows["special"] == [n == 0 for *_, n in flat]
    assert set(rows["valid"]) == {True}
    assert (table.rows, table.documents) == (len(flat), 300)


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("depthscope.storage.table_files.ROWS_PER_GROUP", 64)
    monkeypatch.setattr("depthscope.storage.tables.ROWS_PER_GROUP", 64)
    monkeypatch.setattr("depthscope.storage.table_files._DOCUMENTS_PER_GROUP", 7)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("seed", range(4))
def test_ranges_are_found_without_reading_the_rest(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    lengths = random_lengths(60, seed)
    if seed == 3:
        lengths = [0] * 20 + [100] + [0] * 20 + [3] + [0] * 15
    ids = make(tmp_path, lengths)
    table = TokenTable(tmp_path)
    flat = [n for row in ids for n in row]
    owner = [d for d, row in enumerate(ids) for _ in row]
    firsts = [sum(lengths[:d]) for d in range(len(lengths))]
    metadata = pq.read_metadata(tmp_path / "tokens.parquet")
    sizes = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
    assert set(sizes[:-1]) <= {64}
    assert pq.read_metadata(tmp_path / "documents.parquet").num_row_groups > 5
    cases = [(0, len(flat)), (0, 0), (5, 3), (len(flat) - 1, len(flat) + 9), (63, 65), (64, 128)]
    cases += [tuple(sorted(draw.sample(range(len(flat) + 1), 2))) for _ in range(60)]  # type: ignore[misc]
    for first, last in cases:
        assert table.token_ids(first, last).tolist() == flat[first:last]
        assert table.read_rows(first, last, ["row"]).column(0).to_pylist() == list(
            range(first, min(last, len(flat)))
        )
        wanted = sorted(set(owner[first:last]))
        document, start, count = table.document_spans(first, last)
        assert document.tolist() == wanted
        assert start.tolist() == [firsts[d] for d in wanted]
        assert count.tolist() == [lengths[d] for d in wanted]
    every = table.document_spans()[0].tolist()
    assert every == [d for d, n in enumerate(lengths) if n]
    shuffled = np.array(draw.sample(range(len(flat)), len(flat)), dtype=np.int64)
    assert table.document_of(shuffled).tolist() == [owner[r] for r in shuffled]


@pytest.mark.usefixtures("small_groups")
def test_a_range_reads_only_its_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, [10] * 100)
    asked: list[list[int]] = []
    original = pq.ParquetFile.read_row_groups

    def spy(self: Any, groups: Any, *given: Any, **options: Any) -> Any:
        asked.append(list(groups))
        return original(self, groups, *given, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", spy)
    table = TokenTable(tmp_path)
    table.token_ids(130, 190)
    assert asked == [[2]]
    table.document_spans(150, 160)
    assert asked[1] == [2]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make(tmp_path / name, random_lengths(200, 5))
        mark_invalid(tmp_path / name, [3, 9, 4] if name == "a" else [4, 3, 9, 3])
    mark_invalid(tmp_path / "b", [9])
    for name in ("tokens.parquet", "documents.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.usefixtures("small_groups")
def test_marking_documents_invalid_changes_nothing_else(tmp_path: Path) -> None:
    make(tmp_path, [5, 100, 0, 60, 7])
    before = TokenTable(tmp_path).read_rows(0, 172)
    mark_invalid(tmp_path, [])
    mark_invalid(tmp_path, [1])
    mark_invalid(tmp_path, [4, 2])
    after = TokenTable(tmp_path).read_rows(0, 172)
    assert after.drop_columns("valid").equals(before.drop_columns("valid"))
    expected = [d not in (1, 2, 4) for d in after.column("document").to_pylist()]
    assert after.column("valid").to_pylist() == expected
    assert after.schema.equals(before.schema)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "documents.parquet",
        "partial",
        "tokens.parquet",
    ]


def test_the_digest_covers_borders(tmp_path: Path) -> None:
    one = write(tmp_path / "a", [document([1, 2]), document([3])])
    two = write(tmp_path / "b", [document([1]), document([2, 3])])
    three = write(tmp_path / "c", [document([1, 2]), document([3])])
    assert one == three
    assert one.digest != two.digest
    assert (one.rows, one.documents) == (3, 2)


def test_nothing_appears_before_it_is_whole(tmp_path: Path) -> None:
    def broken() -> None:
        with TableWriter(StorePaths(tmp_path)) as writer:
            writer.add(document([1, 2]))
            writer.finish()
            assert not (tmp_path / "tokens.parquet").exists()
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert not list(tmp_path.rglob("*.parquet"))
    write(tmp_path, [document([1])])
    assert not list((tmp_path / "partial").iterdir())


def test_a_document_longer_than_row_groups(tmp_path: Path) -> None:
    make(tmp_path, [3, 150_000, 4])
    metadata = pq.read_metadata(tmp_path / "tokens.parquet")
    sizes = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
    assert sizes == [65536, 65536, 150_007 - 2 * 65536]
    assert TokenTable(tmp_path).token_ids(65530, 65540).tolist() == [
        (7 + r - 3) % 1000 for r in range(65530, 65540)
    ]


def test_large_texts_are_written_in_small_batches(tmp_path: Path) -> None:
    big = "x" * (9 << 20)
    write(tmp_path, [document([1], n, {"blob": json.dumps(big)}) for n in range(4)])
    assert pq.read_metadata(tmp_path / "documents.parquet").num_row_groups == 2


def test_missing_and_broken_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"is .* a store"):
        _ = TokenTable(tmp_path).rows
    make(tmp_path, [3])
    (tmp_path / "documents.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(Damage, match=r"documents\.parquet"):
        TokenTable(tmp_path).read_documents()
