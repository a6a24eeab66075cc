"""A store whose best guesses are written by hand: the unembedding is the identity.

The root mean square scales all logits alike, so the order of the values of h is the order of the
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import save_file

from .paired_stores import store
from .small_store import SmallStore

VOCABULARY = 12


def ordered_store(
    root: Path,
    guesses: Sequence[Sequence[Sequence[int]]],
    lengths: Sequence[int],
    vocabulary: int = VOCABULARY,
    **options: Any,
) -> SmallStore:
    """``guesses[row][point]``: the tokens in the order of their logits; others follow by id."""
    rows, points = len(guesses), len(guesses[0])
    h = np.empty((points, rows, vocabulary))
    for row, of_points in enumerate(guesses):
        for point, first in enumerate(of_points):
            order = [*first, *(token for token in range(vocabulary) if token not in first)]
            h[point, row, order] = np.arange(vocabulary, 0, -1) / 4
    made = store(root, h, lengths, vocabulary=vocabulary, **options)
    identity_head(made)
    return made


def identity_head(made: SmallStore) -> None:
    """Logits are the normed values themselves."""
    size = made.h.shape[-1]
    head: dict[str, NDArray[Any]] = {
        "norm.weight": np.ones(size, np.float32),
        "unembedding.weight": np.eye(size, dtype=np.float32),
    }
    save_file(head, made.root / "head.safetensors")


def set_columns(path: Path, columns: dict[str, pa.Array]) -> None:
    """Replace or add columns of a Parquet file."""
    table = pq.read_table(path)
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        table = table.append_column(name, values) if at < 0 else table.set_column(at, name, values)
    pq.write_table(table, path)
