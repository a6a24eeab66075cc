"""Predicates against the same condition in Python, and everything they must refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths
from depthscope.storage.predicates import sample_documents, select_rows
from depthscope.storage.tables import TableDocument, TableWriter

WORDS = ["<s>", " the", " cat", "'s", None]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 documents whose rows can be computed by hand (see ``expected_rows``)."""
    root = tmp_path_factory.mktemp("store with 'quotes'")
    with TableWriter(StorePaths(root)) as writer:
        for number in range(120):
            ids = np.arange(number % 11, dtype=np.int32) % 5
            writer.add(
                TableDocument(
                    source="c.jsonl",
                    line=number + 1,
                    token_ids=ids,
                    tokens=[WORDS[i] for i in ids],
                    char_start=ids,
                    char_end=ids,
                    special=ids == 0,
                    text=f"number {number}",
                    fields={"level": number % 4, "answer correct": number % 2 == 0},
                )
            )
    return root


def expected_rows(condition: Callable[[dict[str, Any]], bool | None]) -> list[int]:
    rows = []
    row = 0
    for number in range(120):
        for position in range(number % 11):
            values = {
                "row": row,
                "document": number,
                "position": position,
                "token": WORDS[position % 5],
                "special": position % 5 == 0,
                "level": number % 4,
                "n": number % 11,
                "correct": number % 2 == 0,
            }
            if condition(values):
                rows.append(row)
            row += 1
    return rows


@pytest.mark.parametrize(
    ("predicate", "condition"),
    [
        ("NOT special AND position % 4 = 0", lambda v: not v["special"] and v["position"] % 4 == 0),
        ("token = ' the'", lambda v: v["token"] == " the"),
        ("token = '''s' -- a comment", lambda v: v["token"] == "'s"),
        ("token LIKE '% c%' OR row = 3", lambda v: " c" in (v["token"] or "") or v["row"] == 3),
        ("token IS NULL", lambda v: v["token"] is None),
        ("true", lambda v: True),
        ("false", lambda v: False),
        ("level = 2 AND position = 0", lambda v: v["level"] == 2 and v["position"] == 0),
        ('"answer correct"', lambda v: v["correct"]),
        ("n_tokens > 5 AND tokens.document < 40", lambda v: v["n"] > 5 and v["document"] < 40),
        ("text = 'number 8'", lambda v: v["document"] == 8),
        ("NOT valid", lambda v: False),
        ("role = 'user'", lambda v: False),
        (
            "document IN (SELECT document FROM documents WHERE level = 3)",
            lambda v: v["level"] == 3,
        ),
        ("LEVEL BETWEEN 1 AND 2", lambda v: v["level"] in (1, 2)),
    ],
)
def test_a_predicate_chooses_the_rows_it_says(
    store: Path, predicate: str, condition: Callable[[dict[str, Any]], bool]
) -> None:
    rows = select_rows(store, predicate)
    assert rows.dtype == np.int64
    assert rows.tolist() == expected_rows(condition)


@pytest.mark.parametrize(
    ("predicate", "part"),
    [
        ("", "is empty"),
        ("position >", "is no SQL"),
        ("'", "is no SQL"),
        ("true /*", "is no SQL"),
        ("true; DROP TABLE tokens", "is no SQL"),
        ("true) UNION SELECT 1 WHERE (true", "nothing more"),
        ("true) ORDER BY (row", "nothing more"),
        ("true) LIMIT (1", "nothing more"),
        ("true) GROUP BY (row", "nothing more"),
        ("true); SELECT row FROM tokens WHERE (true", "nothing more"),
        ("position", "true or false"),
        ("NULL", "true or false"),
        ("true, false", "true or false"),
        ("colour = 'red'", "colour"),
        ("colour = 'red'", "level, answer correct"),
        ("position = 'first'", "Conversion Error"),
        ("CAST(text AS INT) > 1", "Conversion Error"),
        ("count(*) > 1", "aggregates"),
        ("random() < 0.5", "differently each time"),
        ("now() > '2020-01-01'", "differently each time"),
        ("current_date > '2020-01-01'", "differently each time"),
        ("row IN (SELECT row FROM tokens USING SAMPLE 3)", "differs each time"),
    ],
)
def test_bad_predicates_are_refused_by_name(store: Path, predicate: str, part: str) -> None:
    with pytest.raises(RequestError) as caught:
        select_rows(store, predicate)
    message = str(caught.value)
    assert part in message
    assert "\n" not in message
    assert message.startswith("the predicate")
    assert predicate in message


@pytest.mark.parametrize("way", ["read_csv('{}')", "'{}'", "read_text('{}')", "glob('{}')"])
def test_a_predicate_reads_no_other_file(store: Path, tmp_path: Path, way: str) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("row\n1\n")
    with pytest.raises(RequestError, match="Permission Error"):
        select_rows(store, f"row IN (SELECT 1 FROM {way.format(secret)})")


def test_a_predicate_changes_no_setting(store: Path) -> None:
    before = {p: p.read_bytes() for p in store.iterdir() if p.is_file()}
    with pytest.raises(RequestError):
        select_rows(store, "true); SET enable_external_access = true; SELECT (true")
    assert before == {p: p.read_bytes() for p in store.iterdir() if p.is_file()}


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"tokens\.parquet: no such file"):
        select_rows(tmp_path, "true")


def test_sampled_documents() -> None:
    drawn = sample_documents(1000, 50, seed=3)
    assert drawn.dtype == np.int64
    assert len(set(drawn.tolist())) == 50
    assert drawn.tolist() == sorted(drawn.tolist())
    assert 0 <= drawn[0] <= drawn[-1] < 1000
    assert drawn.tolist() == sample_documents(1000, 50, seed=3).tolist()
    assert drawn.tolist() != sample_documents(1000, 50, seed=4).tolist()
    assert set(sample_documents(1000, 20, seed=3)) < set(drawn.tolist())
    assert sample_documents(7, 50, seed=3).tolist() == list(range(7))
    assert sample_documents(7, 0, seed=3).tolist() == []
    # Written down once: a library's update must not move a draw.
    assert sample_documents(1000, 5, seed=0).tolist() == [250, 286, 728, 781, 844]


def test_the_draw_is_even() -> None:
    hits = np.zeros(20)
    for seed in range(500):
        hits[sample_documents(20, 5, seed)] += 1
    # 500 draws of 5 in 20: 125 expected each, standard deviation 9.7.
    assert hits.min() > 85
    assert hits.max() < 165
