"""The demo corpus is right (answers checked independently), varied, and the same every time."""

from __future__ import annotations

import ast
import json
import operator
import re
from pathlib import Path
from typing import Any

import pytest
from depthscope.pipeline import demo_facts
from depthscope.pipeline.demo_corpus import make_demo_corpus
from depthscope.storage.errors import RequestError

FIELDS = {"text", "kind", "depth", "question", "answer"}


def written(path: Path, **options: int) -> list[dict[str, Any]]:
    make_demo_corpus(path, **options)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def corpus(tmp_path: Path) -> list[dict[str, Any]]:
    return written(tmp_path / "new folder" / "demo.jsonl")


def of_kind(corpus: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    chosen = [document for document in corpus if document["kind"] == kind]
    assert len(chosen) == 60
    return chosen


def evaluate(node: ast.AST) -> tuple[int, int]:
    """The value of a tree of + and -, and how many operations it holds."""
    if isinstance(node, ast.BinOp):
        left, right = evaluate(node.left), evaluate(node.right)
        act = {ast.Add: operator.add, ast.Sub: operator.sub}[type(node.op)]
        return act(left[0], right[0]), left[1] + right[1] + 1
    assert isinstance(node, ast.Constant)
    assert isinstance(node.value, int)
    return node.value, 0


def test_shape(corpus: list[dict[str, Any]]) -> None:
    assert len(corpus) == 240
    assert all(set(document) == FIELDS for document in corpus)
    assert len({document["text"] for document in corpus}) == 240
    for document in corpus:
        assert 25 <= len(re.findall(r"\w+|[^\w\s]", document["text"])) <= 110
        if document["kind"] == "plain":
            assert document["question"] is None
            assert document["answer"] is None
            assert document["depth"] == 0
        else:
            assert document["question"] in document["text"]
            assert document["text"].endswith(f"\nAnswer: {document['answer']}")


def test_arithmetic_answers(corpus: list[dict[str, Any]]) -> None:
    depths = set()
    for document in of_kind(corpus, "arithmetic"):
        expression = document["question"].removeprefix("What is ").removesuffix("?")
        value, operations = evaluate(ast.parse(expression, mode="eval").body)
        assert document["answer"] == str(value)
        assert document["depth"] == operations
        assert 0 <= value <= 99
        depths.add(operations)
    assert depths == set(range(1, 9))


def test_word_problem_answers(corpus: list[dict[str, Any]]) -> None:
    for document in of_kind(corpus, "word_problem"):
        *told, asked = re.findall(r"[^.?]+[.?]", document["question"])
        start, *steps = told
        total = int(re.findall(r"\d+", start)[0])
        for step in steps:
            (number,) = (int(found) for found in re.findall(r"\d+", step))
            total += number if " more" in step else -number
            assert total >= 0
        assert document["answer"] == str(total)
        assert document["depth"] == len(steps)
        assert "How many" in asked


def test_two_hop_hides_the_middle_step(corpus: list[dict[str, Any]]) -> None:
    capital = {name: country for country, name, _ in demo_facts.COUNTRIES}
    for document in of_kind(corpus, "two_hop"):
        assert document["depth"] == 2
        if "whose capital is" in document["question"]:
            city = document["question"].split("whose capital is ")[1].removesuffix("?")
            assert capital[city] not in document["text"].replace(city, "")


def test_facts_are_consistent() -> None:
    names = [country for country, _, _ in demo_facts.COUNTRIES]
    assert len(set(names)) == len(names)
    assert len({capital for _, capital, _ in demo_facts.COUNTRIES}) == len(names)
    assert {country for _, country in demo_facts.LANDMARKS} <= set(names)


def test_seed_decides_every_byte(tmp_path: Path) -> None:
    written(tmp_path / "a", seed=3, documents=40)
    written(tmp_path / "b", seed=3, documents=40)
    written(tmp_path / "c", seed=4, documents=40)
    first, same, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == same
    assert first != other
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a", "b", "c"]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="at least 1"):
        make_demo_corpus(tmp_path / "none", documents=0)
    with pytest.raises(RequestError, match="at most"):
        make_demo_corpus(tmp_path / "many", documents=100_000)
    assert not list(tmp_path.iterdir())
