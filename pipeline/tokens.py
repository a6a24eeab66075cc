"""From texts to the token table: every row's place is fixed here, before a model is loaded.

The corpus streams through the tokenizer in batches, so memory does not grow with it (but for 16
bytes a document, which find exact duplicates) and the cost is linear. Row numbers run from 0 over
the whole corpus without gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from blake3 import blake3
from depthscope.storage.errors import RequestError
from depthscope.storage.tables import TableDocument, TableWriter, document_digest

from .corpus import CorpusSpec, corpus_sources, read_corpus
from .encode import EncodedText, TextEncoder
from .raw_documents import RawDocument
from .windows import cut

_BATCH_TEXTS = 256
_BATCH_CHARACTERS = 1 << 20

#: Column of documents.parquet that says why a text was skipped.
ERROR_FIELD = "read_error"


@dataclass
class SourceSummary:
    """One file or data set: blake3 of its bytes (None without a file), documents from it."""

    path: str
    digest: str | None
    documents: int


@dataclass
class CorpusSummary:
    """What the corpus became.

    ``texts`` counts records read, ``documents`` what they became (windows count apart),
    ``duplicates`` the documents whose token ids equal an earlier one's, ``truncated`` texts cut at
    the limit, ``windowed`` texts cut into several, ``skipped`` texts that could not be used.
    ``digest`` covers token ids and document borders; ``token_limit`` is None without a limit.
    """

    sources: list[SourceSummary] = field(default_factory=list)
    rows: int = 0
    documents: int = 0
    digest: str = ""
    texts: int = 0
    duplicates: int = 0
    truncated: int = 0
    windowed: int = 0
    skipped: int = 0
    longest: int = 0
    token_limit: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The summary as plain values, for run.json."""
        return asdict(self)


def tokenize_corpus(
    spec: CorpusSpec,
    tokenizer: Any,
    context: int | None,
    writer: TableWriter,
    *,
    vocabulary: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> CorpusSummary:
    """Read, tokenise and write the whole corpus; the writer is finished but not published.

    Parameters
    ----------
    tokenizer
        A Hugging Face tokenizer; None is allowed where the corpus holds token ids.
    context
        Most tokens the model can take, None without a limit.
    vocabulary
        Token ids in a corpus must be smaller; by default the tokenizer's size.
    on_progress
        Called after each batch with documents and rows so far.

    Raises
    ------
    RequestError
        For bad input, naming file and line, and for a corpus without a single token.
    """
    summary = CorpusSummary(token_limit=_token_limit(spec, context))
    sources = {name: SourceSummary(name, None, 0) for name in corpus_sources(spec)}
    encoder = TextEncoder(spec, tokenizer, vocabulary)
    seen: set[bytes] = set()
    for batch in _batches(read_corpus(spec)):
        for raw, encoded in zip(batch, encoder.encode(batch), strict=True):
            for document in _documents(spec, encoder, raw, encoded, summary):
                _count(document, summary, seen)
                sources[document.source].documents += 1
                writer.add(document)
        if on_progress is not None:
            on_progress(summary.documents, summary.rows)
    if not summary.rows:
        raise RequestError(f"{', '.join(spec.data)}: the corpus is empty: it holds no tokens")
    summary.digest = writer.finish().digest
    for source in sources.values():
        source.digest = _file_digest(source.path)
    summary.sources = list(sources.values())
    return summary


def _documents(
    spec: CorpusSpec,
    encoder: TextEncoder,
    raw: RawDocument,
    encoded: EncodedText | RequestError,
    summary: CorpusSummary,
) -> Iterator[TableDocument]:
    """The table documents of one text: one, several windows, or one without tokens if skipped."""
    summary.texts += 1
    try:
        if isinstance(encoded, RequestError):
            raise encoded
        pieces = cut(spec, encoded, raw.where, summary.token_limit, encoder.decode)
    except RequestError as error:
        if spec.on_error == "stop":
            raise
        summary.skipped += 1
        empty = EncodedText.empty(raw.text or "")
        raw = replace(raw, fields={**raw.fields, ERROR_FIELD: str(error)})
        yield _table_document(encoder, raw, empty, raw.line, None)
        return
    summary.windowed += len(pieces) > 1
    summary.truncated += len(pieces) == 1 and len(pieces[0].ids) < len(encoded.ids)
    numbered = spec.long_text == "window"
    for number, piece in enumerate(pieces):
        line = raw.line
        if raw.spans_lines and encoded.text is not None:
            line += encoded.text.count("\n", 0, piece.offset)
        yield _table_document(encoder, raw, piece, line, number if numbered else None)


def _table_document(
    encoder: TextEncoder, raw: RawDocument, piece: EncodedText, line: int, window: int | None
) -> TableDocument:
    return TableDocument(
        source=raw.source,
        line=line,
        token_ids=piece.ids,
        tokens=encoder.pieces(piece.ids),
        char_start=piece.char_start,
        char_end=piece.char_end,
        special=encoder.special(piece.ids),
        text=piece.text,
        roles=piece.roles,
        fields=raw.fields if window is None else {**raw.fields, "window": window},
    )


def _count(document: TableDocument, summary: CorpusSummary, seen: set[bytes]) -> None:
    count = len(document.token_ids)
    summary.documents += 1
    summary.rows += count
    summary.longest = max(summary.longest, count)
    if count:
        digest = bytes.fromhex(document_digest(document.token_ids))
        summary.duplicates += digest in seen
        seen.add(digest)


def _token_limit(spec: CorpusSpec, context: int | None) -> int | None:
    if spec.max_tokens is not None and context is not None and spec.max_tokens > context:
        raise RequestError(
            f"--max-tokens {spec.max_tokens} is beyond the model's context of {context} tokens"
        )
    limit = spec.max_tokens or context
    if limit is None and spec.long_text == "window":
        raise RequestError("windows need a length; give --max-tokens")
    return limit


def _batches(documents: Iterator[RawDocument]) -> Iterator[list[RawDocument]]:
    batch: list[RawDocument] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text or "") + len(document.token_ids or ())
        if len(batch) >= _BATCH_TEXTS or size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _file_digest(path: str) -> str | None:
    if not Path(path).is_file():
        return None
    return blake3().update_mmap(path).hexdigest()
