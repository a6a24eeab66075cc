"""Corpora of known depth: right answers, levels in turn, the same bytes every time."""

from __future__ import annotations

import ast
import json
import operator
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from depthscope.pipeline import demo_facts
from depthscope.pipeline.level_corpora import make_arithmetic_corpus, make_facts_corpus
from depthscope.storage.errors import RequestError

FIELDS = {"text", "kind", "level", "question", "answer"}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def evaluate(node: ast.AST) -> tuple[int, int]:
    """The value of a tree of + and -, and how many operations it holds."""
    if isinstance(node, ast.BinOp):
        left, right = evaluate(node.left), evaluate(node.right)
        act = {ast.Add: operator.add, ast.Sub: operator.sub}[type(node.op)]
        return act(left[0], right[0]), left[1] + right[1] + 1
    assert isinstance(node, ast.Constant)
    assert isinstance(node.value, int)
    return node.value, 0


def test_arithmetic(tmp_path: Path) -> None:
    path = tmp_path / "new" / "sums.jsonl"
    make_arithmetic_corpus(path, documents=400)
    records = read(path)
    assert Counter(record["level"] for record in records) == dict.fromkeys(range(1, 9), 50)
    assert len({record["text"] for record in records}) == 400
    for record in records:
        assert set(record) == FIELDS
        expression = record["question"].removeprefix("What is ").removesuffix("?")
        value, operations = evaluate(ast.parse(expression, mode="eval").body)
        assert record["answer"] == str(value)
        assert record["level"] == operations
        assert 0 <= value <= 99
        # No intermediate result is written: only the expression and the answer hold digits.
        rest = record["text"].replace(expression, "").removesuffix(record["answer"])
        assert not any(character.isdigit() for character in rest)
        assert record["text"].endswith(f"Question: {record['question']}\nAnswer: {value}")


def test_chosen_depths(tmp_path: Path) -> None:
    make_arithmetic_corpus(tmp_path / "a", documents=10, depths=(2, 20, 2))
    assert Counter(r["level"] for r in read(tmp_path / "a")) == {2: 5, 20: 5}
    for depths in ((), (0, 1), (65,)):
        with pytest.raises(RequestError, match="each must lie between 1 and 64"):
            make_arithmetic_corpus(tmp_path / "b", depths=depths)
    with pytest.raises(RequestError, match="at least 1 document"):
        make_arithmetic_corpus(tmp_path / "b", documents=0)
    with pytest.raises(RequestError, match=r"not 100000 different documents .* at most \d+"):
        make_arithmetic_corpus(tmp_path / "b", documents=100_000, depths=(1,))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RequestError, match="cannot be written"):
        make_arithmetic_corpus(tmp_path / "file" / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "file"]


def test_facts(tmp_path: Path) -> None:
    make_facts_corpus(tmp_path / "facts", documents=200)
    records = read(tmp_path / "facts")
    assert Counter(record["level"] for record in records) == {1: 100, 2: 100}
    capital = {country: name for country, name, _ in demo_facts.COUNTRIES}
    currency = {country: name for country, _, name in demo_facts.COUNTRIES}
    stands = dict(demo_facts.LANDMARKS)
    frames: dict[int, set[str]] = {1: set(), 2: set()}
    for record in records:
        assert set(record) == FIELDS
        question, answer = record["question"], record["answer"]
        frames[record["level"]].add(record["text"].split("\n")[0])
        assert record["text"].endswith(f"\nQuestion: {question}\nAnswer: {answer}")
        if record["level"] == 2:
            continue
        if question.startswith("What is the capital of "):
            assert capital[question.removeprefix("What is the capital of ")[:-1]] == answer
        elif question.startswith("Which currency is used in "):
            assert currency[question.removeprefix("Which currency is used in ")[:-1]] == answer
        else:
            assert stands[question.removeprefix("In which country is ")[:-1]] == answer
    # What stands before the question must not tell the levels apart.
    assert frames[1] == frames[2]


def test_seed_decides_every_byte(tmp_path: Path) -> None:
    for make in (make_arithmetic_corpus, make_facts_corpus):
        contents = []
        for name, seed in (("a", 3), ("b", 3), ("c", 4)):
            make(tmp_path / name, documents=40, seed=seed)
            contents.append((tmp_path / name).read_bytes())
        assert contents[0] == contents[1] != contents[2]
