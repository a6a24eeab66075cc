"""Is every row of the token table there once, and every token in its document?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from blake3 import blake3

from .errors import Damage, RequestError
from .problem import Problem
from .run_record import RunRecord
from .token_table import TokenTable

#: Documents that are checked at a time.
_DOCUMENTS = 4096


def check_tokens(root: Path, record: RunRecord) -> Iterator[Problem]:
    """Every row once, and every document's digest over its own tokens."""
    mend = "extract into a new store"
    try:
        table = TokenTable(root)
        if table.rows != record.rows or table.documents != record.documents:
            yield Problem(
                f"tokens.parquet has {table.rows} rows of {table.documents} documents, run.json "
                f"says {record.rows} of {record.documents}: {mend}"
            )
            return
        documents, starts, lengths = table.document_spans()
        digests = table.read_documents(["digest"]).column(0)
        for first in range(0, len(documents), _DOCUMENTS):
            part = slice(first, first + _DOCUMENTS)
            begin, end = int(starts[part][0]), int(starts[part][-1] + lengths[part][-1])
            tokens = table.read_rows(begin, end, ["row", "document", "position", "token_id"])
            row, owner, position, ids = (tokens.column(i).to_numpy() for i in range(4))
            expected = np.repeat(documents[part], lengths[part])
            places = row - np.repeat(starts[part], lengths[part])
            if not (
                np.array_equal(row, np.arange(begin, end))
                and np.array_equal(owner, expected)
                and np.array_equal(position, places)
            ):
                yield Problem(f"tokens.parquet: rows {begin} to {end - 1} are out of order: {mend}")
                continue
            for number, start, length in zip(
                documents[part], starts[part], lengths[part], strict=True
            ):
                own = np.ascontiguousarray(ids[start - begin : start - begin + length], "<i4")
                if blake3(own.tobytes()).hexdigest(length=16) != digests[int(number)].as_py():
                    yield Problem(f"document {number}: tokens differ from its digest: {mend}")
    except (Damage, RequestError, OSError, ValueError) as error:
        yield Problem(f"token tables cannot be read ({error}): {mend}")
