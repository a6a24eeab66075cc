"""Levels from the fields of a corpus: their order, and what is no level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from depthscope.analysis.levels import Levels, document_levels
from depthscope.analysis.store import open as open_store
from depthscope.storage.errors import RequestError

from .small_store import LENGTHS, build


def levels(tmp_path: Path, values: list[Any], order: list[str] | None = None) -> Levels:
    """Levels of ten documents, the last nine of them in reverse order."""
    store = build(tmp_path / "s")
    path = store.root / "documents.parquet"
    table = pq.read_table(path).append_column("hardness", pa.array(values))
    pq.write_table(table, path)
    return document_levels(open_store(store.root), np.arange(len(LENGTHS)), "hardness", order)


def test_numbers(tmp_path: Path) -> None:
    found = levels(tmp_path, [10, 9, 2, None, 10, 9, 2, 2, 1, 10])
    assert found.labels.tolist() == [1, 2, 9, 10]
    assert found.labels.dtype == np.int64
    assert found.numbers.tolist() == [1, 2, 9, 10]
    assert found.of_document.tolist() == [3, 2, 1, -1, 3, 2, 1, 1, 0, 3]
    assert found.ordered


def test_numbers_amid_words(tmp_path: Path) -> None:
    names = [f"Level {n}" for n in (5, 1, 10, 2, 2, 2, 2, 2, 2)]
    found = levels(tmp_path, [*names, ""])
    assert found.labels.tolist() == ["Level 1", "Level 2", "Level 5", "Level 10"]
    assert found.numbers.tolist() == [1, 2, 5, 10]
    assert found.of_document.tolist()[-1] == -1
    assert found.ordered


def test_numbers_as_text(tmp_path: Path) -> None:
    found = levels(tmp_path, [str(n) for n in (5, 1, 10, 2, 2, 2, 2, 2, 2, 2)])
    assert found.labels.tolist() == [1, 2, 5, 10]
    halves = levels(tmp_path / "b", [0.5, 2.5, float("nan"), *[0.5] * 7])
    assert halves.labels.tolist() == [0.5, 2.5]
    assert halves.of_document[2] == -1


def test_words_have_no_order(tmp_path: Path) -> None:
    found = levels(tmp_path, ["hard", "easy", "middling", *["easy"] * 7])
    assert found.labels.tolist() == ["easy", "hard", "middling"]
    assert not found.ordered
    mixed = levels(tmp_path / "b", ["Level 1", "Level 2", "Level ?", *["Level 1"] * 7])
    assert not mixed.ordered
    two = levels(tmp_path / "c", [True, False, *[True] * 8])
    assert two.labels.tolist() == ["False", "True"]
    assert two.ordered


def test_a_given_order(tmp_path: Path) -> None:
    found = levels(tmp_path, ["hard", "easy", "odd", *["easy"] * 7], ["easy", "hard"])
    assert found.labels.tolist() == ["easy", "hard"]
    assert found.numbers.tolist() == [0, 1]
    assert found.of_document.tolist() == [1, 0, -1, *[0] * 7]
    assert found.ordered
    some = levels(tmp_path / "b", [3, 1, 2, *[1] * 7], ["3", "1"])
    assert some.labels.tolist() == [3, 1]
    assert some.numbers.tolist() == [3, 1]
    with pytest.raises(RequestError, match=r"no document has hardness '7'; there are 1, 2, 3"):
        levels(tmp_path / "c", [3, 1, 2, *[1] * 7], ["7"])


def test_what_is_no_level(tmp_path: Path) -> None:
    run = open_store(build(tmp_path / "s", lengths=[1] * 100, task_rows=128).root)
    with pytest.raises(RequestError, match=r"no field 'hardness'; documents have document, source"):
        document_levels(run, np.arange(100), "hardness")
    with pytest.raises(RequestError, match="100 different values, a level at most 64"):
        document_levels(run, np.arange(100), "document")
