"""Two small stores of one corpus: the same documents and tokens, activations as a test wants them.

``tokens`` may cut the texts in two ways: every document's text is made of letters, and a cut is a
list of token lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .small_store import SmallStore, build

Array = NDArray[Any]


def store(
    root: Path,
    h: Array,
    lengths: Sequence[int],
    *,
    tokenizer: str = "t",
    dtype: str = "float32",
    special: Array | None = None,
    token_ids: Array | None = None,
    char_end: Array | None = None,
    texts: Sequence[str] | None = None,
    digests: Sequence[str] | None = None,
    **options: Any,
) -> SmallStore:
    """A store whose residual stream is ``h`` (points, rows, hidden)."""
    points, rows, hidden = h.shape
    assert rows == sum(lengths)

    def change(own: Array, a: Array, m: Array) -> None:
        own[...] = h
        a[...] = 0
        m[...] = 1

    made = build(
        root,
        lengths=lengths,
        layers=points - 1,
        hidden=hidden,
        dtype=dtype,
        change=change,
        model={"tokenizer_digest": tokenizer},
        task_rows=options.pop("task_rows", 64),
        sublayers=False,
        **options,
    )
    made.special = np.zeros(rows, bool) if special is None else special
    ids = np.arange(rows) % 50 if token_ids is None else token_ids
    tokens = pq.read_table(root / "tokens.parquet")
    ends = made.position + 1 if char_end is None else char_end
    for name, values in (
        ("special", pa.array(made.special)),
        ("token_id", pa.array(ids, pa.int32())),
        ("char_end", pa.array(ends, pa.int32())),
    ):
        tokens = tokens.set_column(tokens.schema.get_field_index(name), name, values)
    pq.write_table(tokens, root / "tokens.parquet", row_group_size=50)
    documents = pq.read_table(root / "documents.parquet")
    for name, given in (("text", texts), ("digest", digests)):
        if given is not None:
            place = documents.schema.get_field_index(name)
            documents = documents.set_column(place, name, pa.array(list(given), pa.string()))
    pq.write_table(documents, root / "documents.parquet", row_group_size=7)
    return made
