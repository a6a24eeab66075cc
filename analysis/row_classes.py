"""Classes of rows: how common a token is, its part of speech, its place in an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

from .frequencies import BUCKETS, TokenBuckets, token_buckets
from .option_ranks import LETTERS
from .rows import Piece
from .store import Run
from .target_ranks import Ranks
from .token_labels import ANSWER, TokenLabels, answer_tokens, parts_of_speech

By = Literal["bucket", "pos", "fact", "options"]
KINDS: tuple[By, ...] = ("bucket", "pos", "fact", "options")

#: All classes together.
ANY = "any"


class RowClasses(Protocol):
    """Tells the class of rows; sent to the workers."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes."""

    def parameters(self) -> Mapping[str, Any]:
        """What decides the classes."""

    def of(self, piece: Piece, found: Ranks) -> NDArray[np.int64]:
        """Place of every row's class among the labels, (rows,); -1 for none."""


@dataclass(frozen=True, eq=False)
class BucketClasses:
    """How common the target token is."""

    buckets: TokenBuckets

    labels = BUCKETS

    def parameters(self) -> Mapping[str, Any]:
        """Where the counts come from."""
        return self.buckets.parameters()

    def of(self, piece: Piece, found: Ranks) -> NDArray[np.int64]:
        """The bucket of every row's target."""
        return self.buckets[found.target].astype(np.int64)


@dataclass(frozen=True, eq=False)
class LabelClasses:
    """What the token that follows is labelled with."""

    found: TokenLabels
    field: str | None

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels."""
        return self.found.labels

    def parameters(self) -> Mapping[str, Any]:
        """The field that holds the answer, where there is one; the corpus decides the rest."""
        return {"answer": self.field, "unaligned_documents": self.found.unaligned}

    def of(self, piece: Piece, found: Ranks) -> NDArray[np.int64]:
        """The label of what follows every row."""
        places = self.found.of(np.asarray(piece.rows, dtype=np.int64))
        return np.where(found.following < 0, -1, places)


@dataclass(frozen=True, eq=False)
class OptionClasses:
    """Which option the target is."""

    tokens: NDArray[np.int64]
    field: str | None

    labels = LETTERS

    def parameters(self) -> Mapping[str, Any]:
        """The options' tokens, and the field that holds the right one."""
        return {"answer": self.field, "option_tokens": self.tokens.tolist()}

    def of(self, piece: Piece, found: Ranks) -> NDArray[np.int64]:
        """The place of every row's target among the options."""
        return np.asarray((found.target[:, None] == self.tokens).argmax(axis=1))


def row_classes(run: Run, by: By, frequencies: Path | None, answer: str | None) -> RowClasses:
    """The classes of a kind.

    Raises
    ------
    RequestError
        There is no such kind, or the stores lack what it needs.
    """
    if by == "bucket":
        return BucketClasses(token_buckets(run, frequencies))
    if by == "pos":
        return LabelClasses(parts_of_speech(run), None)
    if by == "fact":
        return LabelClasses(answer_tokens(run, answer), answer or ANSWER)
    raise RequestError(f"unknown classes {by!r}; use {', '.join(KINDS)}")
