"""Ranks of the options of multiple-choice questions among each other, at the row that answers.

A document's answer is read off its last row, or off the row before its last token where that token
is the right option itself. The options are single tokens, spelled as where documents end with one
(`` A``), else after a space unless the documents end with one; each is looked up in the stores' own
token tables. Rank 1 is the option with the largest logit. Where the target is
``final``, it is the option that the last point puts first; for ``next`` it is the right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths

from .guesses import Ints
from .logits import HeadLogits
from .rows import Piece, RowAxis
from .store import Run
from .stored_arrays import StoredArray
from .target_ranks import Ranks, Target
from .translators import Translators

LETTERS = ("A", "B", "C", "D")
#: Fields that may hold the right option: its letter, its number from 0, or, as text, from 1.
ANSWERS = ("answer", "answerKey")


@dataclass(frozen=True, eq=False)
class OptionRanks:
    """Ranks of options.

    Attributes
    ----------
    residual
        The residual stream of the rows that answer.
    head
        Final norm and unembedding.
    points
        The points that are read.
    tokens
        The token of every option.
    rows, gold
        The rows that answer, ascending, and their right options: places among the options.
    target
        Which option's rank is followed.
    translators
        Those of a tuned lens; None reads the stream as it is.
    """

    residual: StoredArray
    head: HeadLogits
    points: tuple[int, ...]
    tokens: Ints
    rows: Ints
    gold: Ints
    target: Target
    translators: Translators | None = None

    @property
    def axis(self) -> RowAxis:
        """The rows that answer."""
        return self.residual.axis

    def read(self, piece: Piece) -> Ranks:
        """Ranks of the piece's rows."""
        h = self.residual.read(piece, as_float32=True)
        points, rows, hidden = h.shape
        if self.translators is not None:
            h = np.stack([*map(self.translators.apply, self.points[:-1], h[:-1]), h[-1]])
        logits = self.head.logits(h.reshape(-1, hidden), self.tokens).reshape(points, rows, -1)
        gold = self.gold[np.searchsorted(self.rows, np.asarray(piece.rows, dtype=np.int64))]
        known = np.isfinite(logits).all(axis=(0, 2))
        best = np.nan_to_num(logits[-1], nan=-np.inf).argmax(axis=1)
        target = best if self.target == "final" else gold
        chosen = np.take_along_axis(logits, target[None, :, None], axis=2)
        rank = (1 + (logits > chosen).sum(axis=2)).astype(np.float32)
        rank[:, ~known] = np.nan
        correct = np.where(known, best == gold, np.nan).astype(np.float32)
        return Ranks(rank, self.tokens[target], self.tokens[gold], correct)


def option_ranks(
    run: Run, target: Target, field: str | None, translators: Translators | None = None
) -> OptionRanks:
    """Find the rows that answer, and the options' tokens.

    Parameters
    ----------
    field
        Field of the documents that holds the right option; None for one of ``ANSWERS``.
    translators
        Those of a tuned lens; None reads the stream as it is.

    Raises
    ------
    RequestError
        A store lacks the field, residuals, the last point or the head; a letter is no token of the
        corpus, or no document has an answer.
    """
    root = run.snapshots[0].root
    run.stored("residual")
    if run.layers not in run.points:
        raise RequestError(
            f"{root}: the last point, {run.layers}, is not stored, so the final choice is unknown: "
            "extract with --points that have it"
        )
    rows, gold, before = [], [], list[str]()
    for snapshot in run.snapshots:
        own_rows, own_gold = _answers(StorePaths(snapshot.root), field, before)
        rows.append(own_rows + snapshot.row_offset)
        gold.append(own_gold)
    joined = np.concatenate(rows)
    if not len(joined):
        raise RequestError(f"{root}: no document has one of {', '.join(LETTERS)} as its answer")
    tokens = _option_tokens(run, before)
    residual = run.at(joined).stored("residual")
    head = HeadLogits(root)
    # Loads the head, so that a missing one is noticed here.
    _ = head.vocabulary
    right = np.concatenate(gold)
    return OptionRanks(residual, head, run.points, tokens, joined, right, target, translators)


def _answers(paths: StorePaths, field: str | None, before: list[str]) -> tuple[Ints, Ints]:
    """Rows that answer and the right options; notes what stands before an option's letter."""
    known = pq.read_schema(paths.documents).names
    names = [name for name in ((field,) if field else ANSWERS) if name in known]
    if not names:
        raise RequestError(
            f"{paths.documents}: there is no field {field or ' or '.join(ANSWERS)}; documents have "
            f"{', '.join(known)}: name the one that holds the right option with --answer"
        )
    documents = pq.read_table(paths.documents, columns=["first_row", "n_tokens", names[0]])
    first, count = (documents.column(n).to_numpy() for n in ("first_row", "n_tokens"))
    gold = np.array([_place(value) for value in documents.column(names[0]).to_pylist()], np.int64)
    used = np.flatnonzero((gold >= 0) & (count > 1))
    last = (first + count - 1)[used]
    table = pq.read_table(paths.tokens, columns=["token"]).take(last)
    rows = np.empty(len(used), np.int64)
    for at, text in enumerate(table.column("token").to_pylist()):
        letter = LETTERS[gold[used[at]]]
        given = (text or "").strip() == letter
        rows[at] = last[at] - given
        if given:
            before.insert(0, text[: text.index(letter)])
        else:
            before.append("" if not text or text[-1] in " \n\t([" else " ")
    return rows, gold[used]


def _place(value: Any) -> int:
    """Which option a field's value names, -1 for none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if 0 <= value < len(LETTERS) else -1
    text = str(value).strip()
    if text in LETTERS:
        return LETTERS.index(text)
    return int(text) - 1 if text in ("1", "2", "3", "4") else -1


def _option_tokens(run: Run, before: Sequence[str]) -> Ints:
    """One token for every letter, all spelled alike."""
    spelled = [f"{before[0]}{letter}" for letter in LETTERS]
    found: dict[str, int] = {}
    for snapshot in run.snapshots:
        with pq.ParquetFile(StorePaths(snapshot.root).tokens) as file:
            for batch in file.iter_batches(1 << 18, columns=["token", "token_id"]):
                wanted = pc.is_in(batch.column("token"), value_set=pa.array(spelled))
                chosen = batch.filter(wanted)
                for text, token in zip(*(c.to_pylist() for c in chosen.columns), strict=True):
                    found.setdefault(text, token)
    missing = [repr(text) for text in spelled if text not in found]
    if missing:
        raise RequestError(
            f"{run.snapshots[0].root}: {', '.join(missing)} is no token of the corpus, so its "
            "logit cannot be found: extract with a template that ends with the right option, or "
            "that spells the options as they are answered"
        )
    return np.array([found[text] for text in spelled], np.int64)
