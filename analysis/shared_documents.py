"""Which documents two runs have in common, and which part of a comparison each belongs to.

Documents are the same when their token ids are (one tokenizer) or their texts. What is left is
matched by source file and line where one text is the beginning of the other, as where one store
has cut it shorter: rows then pair as far as both go. Documents with equal content always land in
one part, so that nothing held out was ever trained on; the draw depends on content and seed alone,
so a part keeps its documents when a corpus grows. Cost: both document tables are read once; about
100 bytes a document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from blake3 import blake3
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths
from numpy.typing import NDArray

from .store import Run
from .token_columns import read_columns

TRAINING, VALIDATION, TEST = 0, 1, 2

#: Documents that an error message names.
_NAMED = 5

#: Texts of either store that are compared at a time.
_TEXTS = 1 << 10


@dataclass(frozen=True, eq=False)
class SharedDocuments:
    """Documents of two runs that have the same content.

    Attributes
    ----------
    source, target
        Their numbers in the one and in the other run; ascending in the source's.
    digest
        What decides the part of each, bytes.
    totals
        Documents of the source and of the target.
    by_tokens
        Whether token ids were compared; otherwise texts were.
    """

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    digest: tuple[bytes, ...]
    totals: tuple[int, int]
    by_tokens: bool

    def __len__(self) -> int:
        return len(self.source)

    def require(self, least: float, names: tuple[str, str]) -> None:
        """Refuse stores of other corpora.

        Raises
        ------
        RequestError
            Fewer than the share ``least`` of the smaller run's documents are shared.
        """
        smaller = min(self.totals)
        if len(self) and len(self) >= least * smaller:
            return
        shown = ", ".join(map(str, self.source[:_NAMED].tolist()))
        more = ", …" if len(self) > _NAMED else ""
        which = f" (documents {shown}{more} of the first)" if len(self) else ""
        raise RequestError(
            f"{names[0]} and {names[1]} share {len(self)} of {smaller} documents{which}: extract "
            f"both from one corpus, or accept less than {least:.0%} with --least-shared"
        )

    def parts(self, validation: float, test: float, seed: int) -> NDArray[np.int8]:
        """The part of every document: 0 training, 1 validation, 2 test.

        Raises
        ------
        RequestError
            There are fewer than three different documents.
        """
        salt = seed.to_bytes(8, "little", signed=True)
        draws = np.array([_draw(salt + digest) for digest in self.digest])
        different = np.unique(draws)
        if len(different) < 3:
            raise RequestError(
                f"{len(different)} different documents are shared, and maps need three: one each "
                "to train on, to choose the ridge on and to test on"
            )
        # A small corpus may draw no document for a part; the nearest draw then stands in.
        first = max(test, float(np.nextafter(different[0], 1)))
        second = max(first + validation, float(np.nextafter(different[different >= first][0], 1)))
        second = min(second, float(different[-1]))
        first = min(first, float(different[-2]))
        parts = np.full(len(draws), TRAINING, dtype=np.int8)
        parts[draws < second] = VALIDATION
        parts[draws < first] = TEST
        return parts


def share_documents(a: Run, b: Run) -> SharedDocuments:
    """Find the documents that two runs have in common.

    Raises
    ------
    RequestError
        The models have different tokenizers and a store has no text.
    """
    by_tokens = same_tokenizer(a, b)
    tables = [_Table.of(run, not by_tokens) for run in (a, b)]
    pairs = _match(tables[0].keys, tables[1].keys)
    left = [set(range(len(t.keys))) - {pair[n] for pair in pairs} for n, t in enumerate(tables)]
    lines = [{tables[n].lines[at]: at for at in sorted(left[n])} for n in (0, 1)]
    alike = [
        (at, lines[1][line])
        for line, at in lines[0].items()
        if line in lines[1] and tables[0].lone(line) and tables[1].lone(line)
    ]
    pairs += _same_start(a, b, tables, alike)
    pairs.sort()
    return SharedDocuments(
        source=tables[0].number[[pair[0] for pair in pairs]],
        target=tables[1].number[[pair[1] for pair in pairs]],
        digest=tuple(tables[0].keys[pair[0]] for pair in pairs),
        totals=(len(tables[0].keys), len(tables[1].keys)),
        by_tokens=by_tokens,
    )


def same_tokenizer(a: Run, b: Run) -> bool:
    """Whether the token ids of two runs mean the same."""
    digests = {s.record.model.get("tokenizer_digest") for r in (a, b) for s in r.snapshots}
    return len(digests) == 1


Line = tuple[str, int]


@dataclass(frozen=True, eq=False)
class _Table:
    """What tells the documents of a run apart: number, digest of content, source and line."""

    number: NDArray[np.int64]
    keys: list[bytes]
    lines: list[Line]
    counts: dict[Line, int]

    @classmethod
    def of(cls, run: Run, texts: bool) -> _Table:
        number: list[int] = []
        keys: list[bytes] = []
        lines: list[Line] = []
        for snapshot in run.snapshots:
            hidden = set(snapshot.invalid)
            with pq.ParquetFile(StorePaths(snapshot.root).documents) as file:
                content = "text" if texts else "digest"
                if content not in file.schema_arrow.names:
                    raise RequestError(
                        f"{snapshot.root} holds no text, and the tokenizers differ, so its "
                        "documents cannot be recognised: extract without --no-text"
                    )
                columns = ["document", "source", "line", content]
                for batch in file.iter_batches(1 << 12, columns=columns):
                    for document, source, line, value in zip(
                        *(batch.column(c).to_pylist() for c in columns), strict=True
                    ):
                        if document in hidden or value is None:
                            continue
                        number.append(document + snapshot.document_offset)
                        keys.append(blake3(value.encode()).digest(16))
                        lines.append((PurePath(source or "").name, int(line or 0)))
        counts: dict[Line, int] = {}
        for one in lines:
            counts[one] = counts.get(one, 0) + 1
        return cls(np.array(number, dtype=np.int64), keys, lines, counts)

    def lone(self, line: Line) -> bool:
        """Whether a line became one document, so that it is cut rather than windowed."""
        return self.counts[line] == 1


def _match(a: Sequence[bytes], b: Sequence[bytes]) -> list[tuple[int, int]]:
    """Places of equal keys; the n-th of several equal ones goes with the n-th."""
    waiting: dict[bytes, list[int]] = {}
    for at in range(len(b) - 1, -1, -1):
        waiting.setdefault(b[at], []).append(at)
    return [(at, waiting[key].pop()) for at, key in enumerate(a) if waiting.get(key)]


def _same_start(
    a: Run, b: Run, tables: Sequence[_Table], pairs: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """The pairs of which one text is the beginning of the other; none where there are no texts."""
    found: list[tuple[int, int]] = []
    for first in range(0, len(pairs), _TEXTS):
        some = pairs[first : first + _TEXTS]
        texts = [
            _texts(run, table.number[[pair[side] for pair in some]])
            for side, (run, table) in enumerate(zip((a, b), tables, strict=True))
        ]
        for pair, one, other in zip(some, *texts, strict=True):
            if one and other and (one.startswith(other) or other.startswith(one)):
                found.append(pair)
    return found


def _texts(run: Run, documents: NDArray[np.int64]) -> list[str | None]:
    """The texts of documents in any order."""
    found: list[str | None] = [None] * len(documents)
    for snapshot in run.snapshots:
        path = StorePaths(snapshot.root).documents
        own = documents - snapshot.document_offset
        mine = np.flatnonzero((own >= 0) & (own < snapshot.record.documents))
        if not len(mine) or "text" not in pq.read_schema(path).names:
            continue
        order = mine[np.argsort(own[mine])]
        for at, text in zip(order, read_columns(path, own[order], ["text"])["text"], strict=True):
            found[at] = text
    return found


def _draw(content: Any) -> float:
    return int.from_bytes(blake3(content).digest(8), "little") / 2**64
