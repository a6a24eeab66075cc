"""The command `corpus`: corpora of known difficulty, made on the spot."""

from __future__ import annotations

import re
from pathlib import Path

import click
from depthscope.pipeline.level_corpora import make_arithmetic_corpus, make_facts_corpus
from depthscope.storage.errors import RequestError

_out = click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="The JSONL file to write."
)
_documents = click.option(
    "--documents", type=int, default=160, show_default=True, help="Documents, all levels together."
)
_seed = click.option(
    "--seed", type=int, default=0, show_default=True, help="Decides every document."
)


@click.group()
def corpus() -> None:
    """Make a corpus whose documents have a known level of difficulty, in the field level."""


@corpus.command("arithmetic")
@_out
@_documents
@click.option("--depths", default="1-8", show_default=True, help="Operations: a range, or 1,2,4,8.")
@_seed
def corpus_arithmetic(out: Path, documents: int, depths: str, seed: int) -> int:
    """Sums of 1 to 8 operations without intermediate results; level is the number of operations."""
    make_arithmetic_corpus(out, documents, parse_depths(depths), seed)
    print(out)
    return 0


@corpus.command("facts")
@_out
@_documents
@_seed
def corpus_facts(out: Path, documents: int, seed: int) -> int:
    """Questions that need one fact, or two facts joined; level is the number of facts."""
    make_facts_corpus(out, documents, seed)
    print(out)
    return 0


def parse_depths(text: str) -> list[int]:
    """Whole numbers from text such as ``1-8`` or ``1,2,4-6``.

    Raises
    ------
    RequestError
        It is something else.
    """
    found: list[int] = []
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", piece)
        if match is None:
            raise RequestError(f"--depths {text!r}: give a range such as 1-8 or numbers as 1,2,4")
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first > 1000:
            raise RequestError(f"--depths {text!r}: spans too many depths")
        found += range(first, last + 1)
    return found
