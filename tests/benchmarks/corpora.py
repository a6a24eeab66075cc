"""Documents to run: of GSM8K where they lie beside the repository, otherwise generated alike."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k.jsonl"

NAMES = ("Ada", "Ben", "Chloe", "Dev", "Edith", "Farid", "Grace", "Hugo", "Ines", "Jonas")
THINGS = ("apples", "pencils", "tickets", "stamps", "marbles", "cookies", "books", "chairs")
DEEDS = {
    "buys {n} more {thing} at the market": 1,
    "finds {n} {thing} in a box under the stairs": 1,
    "gives {n} {thing} to a neighbour": -1,
    "loses {n} {thing} on the way home": -1,
}


def texts(seed: int) -> Iterator[str]:
    """Word problems with their solutions, without end, in a seeded order."""
    order = random.Random(seed)
    if not SHARED.is_file():
        while True:
            yield _problem(order)
    with SHARED.open() as lines:
        known = [json.loads(line) for line in lines]
    while True:
        order.shuffle(known)
        for item in known:
            yield f"{item['question']}\n{item['answer']}"


def _problem(order: random.Random) -> str:
    """A problem of about as many tokens as GSM8K's: 60 to 300, 150 on average."""
    name, thing = order.choice(NAMES), order.choice(THINGS)
    total = order.randint(40, 90)
    question = [f"{name} starts the week with {total} {thing}."]
    answer = []
    for _ in range(min(10, 2 + int(order.expovariate(0.45)))):
        deed, sign = order.choice(list(DEEDS.items()))
        number = order.randint(1, 12)
        question.append(f"Then {name} {deed.format(n=number, thing=thing)}.")
        answer.append(
            f"{total} {'+' if sign > 0 else '-'} {number} = {total + sign * number} {thing}."
        )
        total += sign * number
    question.append(f"How many {thing} does {name} have in the end?")
    return " ".join(question) + "\n" + " ".join([*answer, f"#### {total}"])


def choose(model: Path, rows: int, seed: int = 0) -> list[str]:
    """As many texts as make about that many tokens, never fewer."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model)
    chosen: list[str] = []
    total = 0
    for text in texts(seed):
        chosen.append(text)
        total += len(tokenizer(text).input_ids)
        if total >= rows:
            break
    return chosen


def write(path: Path, chosen: list[str]) -> Path:
    """The texts as JSONL with a field ``text``."""
    lines = [json.dumps({"text": text}) for text in chosen]
    path.write_text("\n".join(lines) + "\n")
    return path
