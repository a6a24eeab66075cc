"""How many tokens a corpus has: counted with the model's tokenizer, or estimated from its bytes.

The whole corpus is read, which is fast, but only its first part is tokenised; the rest is taken to
have as many tokens a character. Cost: one pass over the files, and tokenising 32 million
characters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from depthscope.storage.errors import RequestError

from .corpus import CorpusSpec, read_corpus
from .encode import TextEncoder
from .raw_documents import RawDocument
from .windows import cut
from .workload import CorpusSize

#: Characters that are tokenised before the rest is extrapolated.
COUNTED_CHARACTERS = 32_000_000

#: Bytes of UTF-8 per token of English text in current tokenizers.
BYTES_PER_TOKEN = 4.0

_BATCH = 256


def corpus_size(
    spec: CorpusSpec,
    tokenizer: Any,
    context: int | None,
    *,
    most_characters: int = COUNTED_CHARACTERS,
) -> CorpusSize:
    """The size of a corpus.

    Parameters
    ----------
    spec
        what is read.
    tokenizer
        the model's; None: lengths are estimated, unless the corpus holds token ids.
    context
        most tokens the model takes.

    Raises
    ------
    RequestError
        a document cannot be used, or the corpus holds no tokens.
    """
    limit = spec.max_tokens or context
    exact = tokenizer is not None or spec.token_ids is not None
    measure = _counter(spec, tokenizer, limit) if exact else _guesser(limit)
    lengths: list[int] = []
    counted = rest = 0
    for batch in _batches(read_corpus(spec)):
        characters = sum(_characters(document) for document in batch)
        if counted >= most_characters:
            rest += characters
            continue
        lengths += measure(batch)
        counted += characters
    if not sum(lengths):
        raise RequestError(f"{', '.join(spec.data)}: the corpus holds no tokens: give another one")
    source = "counted" if exact else f"estimated at {BYTES_PER_TOKEN:g} bytes a token"
    found = CorpusSize.of_lengths(lengths, source)
    if not rest:
        return found
    factor = 1 + rest / counted
    return CorpusSize(
        round(found.rows * factor),
        round(found.documents * factor),
        found.document_tokens,
        found.longest,
        f"{source} in the first {1 / factor:.0%} of the text",
        found.lengths,
    )


def _counter(
    spec: CorpusSpec, tokenizer: Any, limit: int | None
) -> Callable[[list[RawDocument]], list[int]]:
    encoder = TextEncoder(spec, tokenizer, None if tokenizer is not None else 1 << 31)

    def measure(batch: list[RawDocument]) -> list[int]:
        lengths = []
        for raw, encoded in zip(batch, encoder.encode(batch), strict=True):
            try:
                if isinstance(encoded, RequestError):
                    raise encoded
                parts = cut(spec, encoded, raw.where, limit, encoder.decode)
            except RequestError:
                if spec.on_error == "stop":
                    raise
                continue
            lengths += [len(part.ids) for part in parts]
        return lengths

    return measure


def _guesser(limit: int | None) -> Callable[[list[RawDocument]], list[int]]:
    def measure(batch: list[RawDocument]) -> list[int]:
        lengths = []
        for raw in batch:
            tokens = max(1, round(len(_text(raw).encode()) / BYTES_PER_TOKEN))
            while limit is not None and tokens > limit:
                lengths.append(limit)
                tokens -= limit
            lengths.append(tokens)
        return lengths

    return measure


def _text(document: RawDocument) -> str:
    if document.messages is not None:
        return "\n".join(str(message.get("content", "")) for message in document.messages)
    return document.text or ""


def _characters(document: RawDocument) -> int:
    return len(document.token_ids) if document.token_ids is not None else len(_text(document))


def _batches(documents: Iterator[RawDocument]) -> Iterator[list[RawDocument]]:
    batch: list[RawDocument] = []
    for document in documents:
        batch.append(document)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
