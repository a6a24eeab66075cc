"""The demo corpus: short documents whose depth of reasoning is known, generated on the spot.

Four kinds, in turn: ``arithmetic`` (1 to 8 operations), ``word_problem`` (2 to 6 steps),
``two_hop`` (two facts to be joined) and ``plain`` (everyday sentences; depth 0). Intermediate
results are never written out, so a model has to find them inside its layers. The same seed gives
the same bytes on every machine.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from depthscope.storage.errors import RequestError

from . import demo_facts as facts

ARITHMETIC_DEPTHS = range(1, 9)
WORD_PROBLEM_DEPTHS = range(2, 7)

_ARITHMETIC_FRAMES = (
    "Work through the sum from left to right, keep the running total in your head, and write down "
    "only the last number.",
    "Here is a small exercise in mental arithmetic. No intermediate results are written, only the "
    "final one.",
    "Add and subtract in the given order. The answer is a single whole number, without any steps.",
)
_TWO_HOP_FRAMES = (
    "This question needs two facts. Find the first one silently, then use it to find the second, "
    "and answer in a few words.",
    "To answer, two pieces of general knowledge have to be joined. Say only where the chain ends, "
    "not how you got there.",
    "The answer takes two steps, and only the result of the second step is asked for here.",
)


@dataclass(frozen=True)
class DemoDocument:
    """One generated document; ``question`` and ``answer`` are None for plain sentences."""

    text: str
    kind: str
    depth: int
    question: str | None
    answer: str | None


def make_demo_corpus(path: Path, seed: int = 0, documents: int = 240) -> None:
    """Write the demo corpus as JSONL, one :class:`DemoDocument` a line, all different.

    Args:
        path: the file to write; it appears complete or not at all.
        seed: decides every document; the same seed gives the same bytes.
        documents: how many documents, the four kinds in turn.

    Raises:
        RequestError: ``documents`` is below 1, or more than can be made without repeating one.
    """
    save_jsonl(path, [asdict(document) for document in demo_documents(seed, documents)])


def save_jsonl(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records as JSONL; the file appears complete or not at all.

    Raises:
        RequestError: the file cannot be written.
    """
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text("".join(lines), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise RequestError(f"{path} cannot be written: {error.strerror or error}") from error


def demo_documents(seed: int = 0, documents: int = 240) -> list[DemoDocument]:
    """Generate the documents of :func:`make_demo_corpus` without writing them."""
    if documents < 1:
        raise RequestError(f"the demo corpus needs at least 1 document, not {documents}")
    random_source = random.Random(seed)
    seen: set[str] = set()
    made = []
    for number in range(documents):
        kind, turn = number % len(_KINDS), number // len(_KINDS)
        document = _new(_KINDS[kind], random_source, turn, seen)
        if document is None:
            raise RequestError(
                f"the demo corpus cannot hold {documents} different documents; ask for at most "
                f"{number}"
            )
        seen.add(document.text)
        made.append(document)
    return made


def _new(
    make: Callable[[random.Random, int], DemoDocument],
    random_source: random.Random,
    turn: int,
    seen: set[str],
) -> DemoDocument | None:
    for _ in range(2000):
        document = make(random_source, turn)
        if document.text not in seen:
            return document
    return None


def _arithmetic(random_source: random.Random, turn: int) -> DemoDocument:
    return arithmetic(random_source, ARITHMETIC_DEPTHS[turn % len(ARITHMETIC_DEPTHS)])


def arithmetic(random_source: random.Random, depth: int) -> DemoDocument:
    """A sum of ``depth`` operations whose running total stays between 0 and 99."""
    total = random_source.randint(2, 30)
    expression = str(total)
    for _ in range(depth):
        add = total < 10 or (total < 80 and random_source.random() < 0.6)
        number = random_source.randint(2, 19) if add else random_source.randint(2, min(total, 19))
        expression += f" {'+' if add else '-'} {number}"
        total += number if add else -number
    return _asked("arithmetic", depth, random_source.choice(_ARITHMETIC_FRAMES),
                  f"What is {expression}?", str(total))  # fmt: skip


def _word_problem(random_source: random.Random, turn: int) -> DemoDocument:
    depth = WORD_PROBLEM_DEPTHS[turn % len(WORD_PROBLEM_DEPTHS)]
    name, things = random_source.choice(facts.NAMES), random_source.choice(facts.THINGS)
    total = random_source.randint(5, 30)
    sentences = [f"{name} has {total} {things}."]
    for _ in range(depth):
        gain = total < 8 or random_source.random() < 0.5
        number = random_source.randint(2, 15) if gain else random_source.randint(2, min(total, 15))
        wording = random_source.choice(facts.GAINS if gain else facts.LOSSES)
        sentences.append(wording.format(name=name, n=number))
        total += number if gain else -number
    question = f"{' '.join(sentences)} How many {things} does {name} have now?"
    return _asked("word_problem", depth, "", question, str(total))


def _two_hop(random_source: random.Random, turn: int) -> DemoDocument:
    question, answer = two_hop_question(random_source, turn)
    return _asked("two_hop", 2, random_source.choice(_TWO_HOP_FRAMES), question, answer)


def two_hop_question(random_source: random.Random, turn: int) -> tuple[str, str]:
    """A question that joins two facts, and its answer; ``turn`` decides its form."""
    of_country = {country: (capital, currency) for country, capital, currency in facts.COUNTRIES}
    form = turn % 4
    if form == 0:
        _, capital, answer = random_source.choice(facts.COUNTRIES)
        question = f"Which currency is used in the country whose capital is {capital}?"
    elif form == 1:
        person, answer = random_source.choice(facts.WORKS)
        question = f"In which country was {person} born?"
    else:
        landmark, country = random_source.choice(facts.LANDMARKS)
        capital, currency = of_country[country]
        asked = "What is the capital of" if form == 2 else "Which currency is used in"
        question = f"{asked} the country where {landmark} stands?"
        answer = capital if form == 2 else currency
    return question, answer


def _plain(random_source: random.Random, turn: int) -> DemoDocument:
    del turn
    pick = random_source.choice
    first, second = random_source.sample(facts.DETAILS, 2)
    subject, other = random_source.sample(facts.SUBJECTS, 2)
    here, there = random_source.sample(facts.PLACES, 2)
    text = (
        f"{pick(facts.TIMES)}, {subject} {pick(facts.ACTIONS)} {here}. {first} {second} "
        f"Not far away, {other} {pick(facts.ACTIONS)} {there}. {pick(facts.ENDINGS)}"
    )
    return DemoDocument(text, "plain", 0, None, None)


def _asked(kind: str, depth: int, frame: str, question: str, answer: str) -> DemoDocument:
    opening = f"{frame}\n" if frame else ""
    return DemoDocument(
        f"{opening}Question: {question}\nAnswer: {answer}", kind, depth, question, answer
    )


_KINDS = (_arithmetic, _word_problem, _two_hop, _plain)
