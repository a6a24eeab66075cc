"""Labels of single tokens that a corpus brings along: parts of speech, and places in an answer.

Both are aligned by character: a word has the token that holds its first character, provided that
the word before ended ahead of that token; an answer has the tokens that overlap with it. A row
predicts the token that follows it, so its class is the label of that token. Cost: one pass over
both tables of the stores; 12 bytes for every labelled token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths
from numpy.typing import NDArray

from .snapshot import Snapshot
from .store import Run

Ints = NDArray[np.int64]

#: Parts of speech of Universal Dependencies that are words.
TAGS = (
    "ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN",
    "PUNCT", "SCONJ", "SYM", "VERB", "X",
)  # fmt: skip
#: Answers of more tokens than this are told apart by their first token only.
MOST_TOKENS = 3
FACTS = (
    *(f"{n} of {m}" for m in range(1, MOST_TOKENS + 1) for n in range(1, m + 1)),
    f"1 of more than {MOST_TOKENS}",
)
#: Field that holds the answer of a fact.
ANSWER = "attribute"

#: Parts of a document's text, as (first character, end, label or -1), ascending.
Spans = list[tuple[int, int, int]]


@dataclass(frozen=True, eq=False)
class TokenLabels:
    """Labels of some tokens.

    Attributes
    ----------
    labels
        All labels.
    rows, places
        Rows of the labelled tokens, ascending, and the places of their labels.
    unaligned
        Documents whose fields do not fit their text.
    """

    labels: tuple[str, ...]
    rows: Ints
    places: NDArray[np.int32]
    unaligned: int

    def of(self, rows: Ints) -> Ints:
        """Place of the label of the token that follows each row, -1 for none."""
        if not len(self.rows):
            return np.full(len(rows), -1, np.int64)
        at = np.minimum(np.searchsorted(self.rows, rows + 1), len(self.rows) - 1)
        return np.where(self.rows[at] == rows + 1, self.places[at], -1).astype(np.int64)


def parts_of_speech(run: Run) -> TokenLabels:
    """Parts of speech, by the documents' fields ``tokens`` and ``upos``, both lists.

    Raises
    ------
    RequestError
        A store has no text or no such field, or no document's words are its text.
    """
    found = [_label(s, ("tokens", "upos"), _words, _first_tokens) for s in run.snapshots]
    return _joined(run, found, TAGS, "tokens and upos are no words of")


def answer_tokens(run: Run, field: str | None) -> TokenLabels:
    """Which of how many tokens of the answer, by the field that holds it (``attribute``).

    Raises
    ------
    RequestError
        A store has no text or no such field, or no document's text holds its answer.
    """
    name = field or ANSWER

    def spans(text: str, fields: Mapping[str, Any]) -> Spans | None:
        answer = str(fields[name]).strip()
        first = text.rfind(answer) if answer else -1
        return None if first < 0 else [(first, first + len(answer), 0)]

    found = [_label(s, (name,), spans, _overlapping) for s in run.snapshots]
    return _joined(run, found, FACTS, f"{name} is nowhere in")


def _joined(
    run: Run, found: list[tuple[Ints, Ints, int]], labels: tuple[str, ...], wrong: str
) -> TokenLabels:
    rows, places = (np.concatenate([one[n] for one in found]) for n in (0, 1))
    if not len(rows):
        raise RequestError(
            f"{run.snapshots[0].root}: {wrong} the text of any document, so no token has a class"
        )
    return TokenLabels(labels, rows, places.astype(np.int32), sum(one[2] for one in found))


def _label(
    snapshot: Snapshot,
    names: tuple[str, ...],
    spans_of: Callable[[str, Mapping[str, Any]], Spans | None],
    tokens_of: Callable[[Spans, Ints, Ints], tuple[Ints, Ints]],
) -> tuple[Ints, Ints, int]:
    """Rows and places of a store's labelled tokens, and its documents that do not fit."""
    path = StorePaths(snapshot.root).documents
    known = pq.read_schema(path).names
    if "text" not in known:
        raise RequestError(f"{snapshot.root} holds no text to align with: extract with text")
    missing = [name for name in names if name not in known]
    if missing:
        raise RequestError(
            f"{path}: there is no field {' and no field '.join(missing)}; documents have "
            f"{', '.join(known)}"
        )
    rows: list[Ints] = [np.empty(0, np.int64)]
    places: list[Ints] = [np.empty(0, np.int64)]
    unaligned = 0
    with (
        pq.ParquetFile(path) as documents,
        pq.ParquetFile(StorePaths(snapshot.root).tokens) as tokens,
    ):
        offsets = _Offsets(tokens)
        wanted = ["first_row", "n_tokens", "text", *names]
        for batch in documents.iter_batches(1 << 10, columns=wanted):
            for record in batch.to_pylist():
                starts, ends = offsets.next(record["n_tokens"])
                absent = record["text"] is None or any(record[name] is None for name in names)
                spans = None if absent else spans_of(record["text"], record)
                unaligned += spans is None
                if spans:
                    at, labels = tokens_of(spans, starts, ends)
                    rows.append(at + record["first_row"] + snapshot.row_offset)
                    places.append(labels)
    return np.concatenate(rows), np.concatenate(places), unaligned


class _Offsets:
    """The character offsets of the documents' tokens, read in order."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self._batches = file.iter_batches(1 << 16, columns=["char_start", "char_end"])
        self._held = np.empty((2, 0), np.int64)

    def next(self, count: int) -> tuple[Ints, Ints]:
        """Those of the next ``count`` tokens."""
        while self._held.shape[1] < count:
            batch = next(self._batches)
            more = np.stack([batch.column(n).to_numpy().astype(np.int64) for n in (0, 1)])
            self._held = np.concatenate([self._held, more], axis=1)
        found, self._held = self._held[:, :count], self._held[:, count:]
        return found[0], found[1]


def _words(text: str, fields: Mapping[str, Any]) -> Spans | None:
    """Words and tags in a text; None where the words are not what the text consists of."""
    try:
        words, tags = (json.loads(fields[name]) for name in ("tokens", "upos"))
    except (TypeError, ValueError):
        return None
    if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags):
        return None
    spans: Spans = []
    at = 0
    for word, tag in zip(words, tags, strict=True):
        while at < len(text) and text[at].isspace():
            at += 1
        if not text.startswith(str(word), at):
            return None
        spans.append((at, at + len(str(word)), TAGS.index(tag) if tag in TAGS else -1))
        at += len(str(word))
    return spans


def _first_tokens(spans: Spans, starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """Tokens that hold the first character of a word and nothing of the word before."""
    first, last, labels = (np.array(column) for column in zip(*spans, strict=True))
    before = np.concatenate([[0], last[:-1]])
    # The first word that begins in the token or behind it.
    word = np.minimum(np.searchsorted(first, starts), len(first) - 1)
    holds = (first[word] >= starts) & (first[word] < ends) & (before[word] <= starts)
    holds &= labels[word] >= 0
    at = np.flatnonzero(holds)
    return at, labels[word[at]].astype(np.int64)


def _overlapping(spans: Spans, starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """Tokens that overlap with an answer, labelled with their number and how many there are."""
    first, last, _ = spans[0]
    at = np.flatnonzero((ends > first) & (starts < last) & (ends > starts))
    if len(at) > MOST_TOKENS:
        return at[:1], np.array([len(FACTS) - 1], np.int64)
    names = [FACTS.index(f"{n} of {len(at)}") for n in range(1, len(at) + 1)]
    return at, np.array(names, np.int64)
