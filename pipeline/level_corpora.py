"""Corpora in which the depth of reasoning is known and varies, for the depth score.

``arithmetic``: sums of a given number of operations, 1 to 8 by default, without intermediate
results. ``facts``: questions that need one fact, and questions that join two. Every document has
the fields text, kind, level, question and answer; levels come in turn, so each has as many
documents as the others. Texts of higher levels are longer, as they cannot but be: documents.parquet
has n_tokens to check against. The same seed gives the same bytes on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from depthscope.storage.errors import RequestError

from . import demo_facts as facts
from .demo_corpus import ARITHMETIC_DEPTHS, arithmetic, save_jsonl, two_hop_question

#: Operations whose running total can still be kept between 0 and 99 by the generator's rule.
MOST_OPERATIONS = 64

_FACT_FRAMES = (
    "Answer the question in a few words.",
    "Give only the answer, without any explanation.",
    "A short answer is enough.",
)

Record = dict[str, Any]


def make_arithmetic_corpus(
    path: Path, documents: int = 160, depths: Sequence[int] = ARITHMETIC_DEPTHS, seed: int = 0
) -> None:
    """Write a JSONL corpus of sums; ``level`` is the number of operations.

    Args:
        path: the file to write; it appears complete or not at all.
        documents: how many documents, the depths in turn.
        depths: numbers of operations.
        seed: decides every document.

    Raises:
        RequestError: there are no depths, one is not between 1 and 64, or more documents are asked
            for than can be made without repeating one.
    """
    levels = list(dict.fromkeys(depths))
    if not levels or not all(1 <= depth <= MOST_OPERATIONS for depth in levels):
        raise RequestError(
            f"depths {', '.join(map(str, levels)) or 'none'}: each must lie between 1 and "
            f"{MOST_OPERATIONS}"
        )

    def make(source: random.Random, level: int, turn: int) -> Record:
        del turn
        made = arithmetic(source, level)
        return _record(made.text, "arithmetic", level, made.question, made.answer)

    save_jsonl(path, _documents(make, levels, documents, seed))


def make_facts_corpus(path: Path, documents: int = 160, seed: int = 0) -> None:
    """Write a JSONL corpus of questions; ``level`` is the number of facts they need, 1 or 2.

    Args:
        path: the file to write; it appears complete or not at all.
        documents: how many documents, the levels in turn.
        seed: decides every document.

    Raises:
        RequestError: more documents are asked for than can be made without repeating one.
    """

    def make(source: random.Random, level: int, turn: int) -> Record:
        ask = one_hop_question if level == 1 else two_hop_question
        question, answer = ask(source, turn)
        text = f"{source.choice(_FACT_FRAMES)}\nQuestion: {question}\nAnswer: {answer}"
        return _record(text, "facts", level, question, answer)

    save_jsonl(path, _documents(make, (1, 2), documents, seed))


def one_hop_question(source: random.Random, turn: int) -> tuple[str, str]:
    """A question about one fact, and its answer; ``turn`` decides its form."""
    form = turn % 3
    if form == 2:
        landmark, country = source.choice(facts.LANDMARKS)
        return f"In which country is {landmark}?", country
    country, capital, currency = source.choice(facts.COUNTRIES)
    if form == 0:
        return f"What is the capital of {country}?", capital
    return f"Which currency is used in {country}?", currency


def _documents(
    make: Callable[[random.Random, int, int], Record],
    levels: Sequence[int],
    documents: int,
    seed: int,
) -> list[Record]:
    if documents < 1:
        raise RequestError(f"a corpus needs at least 1 document, not {documents}")
    source = random.Random(seed)
    seen: set[str] = set()
    made = []
    for number in range(documents):
        turn, place = divmod(number, len(levels))
        record = next(
            (
                one
                for one in (make(source, levels[place], turn) for _ in range(2000))
                if one["text"] not in seen
            ),
            None,
        )
        if record is None:
            raise RequestError(
                f"there are not {documents} different documents of this kind: ask for at most "
                f"{number}"
            )
        seen.add(record["text"])
        made.append(record)
    return made


def _record(text: str, kind: str, level: int, question: str | None, answer: str | None) -> Record:
    return {"text": text, "kind": kind, "level": level, "question": question, "answer": answer}
