"""Classes of rows: by how common a token is, by part of speech, by place in a fact's answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

from .frequencies import BUCKETS, TokenBuckets, token_buckets
from .rows import Piece
from .store import Run
from .target_ranks import Ranks

By = Literal["bucket", "pos", "fact"]
KINDS: tuple[By, ...] = ("bucket",)


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


def row_classes(run: Run, by: By, frequencies: Path | None, answer: str | None) -> RowClasses:
    """The classes of a kind.

    Raises
    ------
    RequestError
        There is no such kind, or the stores lack what it needs.
    """
    if by == "bucket":
        return BucketClasses(token_buckets(run, frequencies))
    raise RequestError(f"unknown classes {by!r}; use {', '.join(KINDS)}")
