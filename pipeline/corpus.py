"""The corpus: which texts a run reads, from which files, in which order.

``read_corpus`` streams: one record is held at a time (with ``sample``, as many as the sample has).
Every problem with the input is a ``RequestError`` that names file and line.
"""

from __future__ import annotations

import glob
import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from depthscope.storage.errors import RequestError
from depthscope.storage.sampling import sample_keys
from pydantic import BaseModel, ConfigDict, PositiveInt, field_validator, model_validator

from .hub_data import is_hub_data, read_hub_data
from .raw_documents import DocumentMaker, RawDocument
from .readers import Format, TextSplit, format_of, read_file
from .template import Template

OnLong = Literal["truncate", "window", "refuse"]


class CorpusSpec(BaseModel):
    """What is read, how a record becomes text, and how text becomes documents."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    data: tuple[str, ...]
    """Files or globs: JSONL, JSON, CSV, Parquet, text (also .gz, .zst); or hf:NAME:CONFIG:SPLIT."""
    format: Format | None = None
    """Format of the files, where their names do not tell: jsonl, json, csv, tsv, parquet, text."""
    text_field: str | None = None
    """Field that holds the text; by default `text`, or the only field that holds a string."""
    template: str | None = None
    """Text made from several fields, such as "{question} {answer}"."""
    chat: str | None = None
    """Field that holds a conversation: a list of messages with role and content."""
    token_ids: str | None = None
    """Field that holds token ids; nothing is tokenised then."""
    split_text: TextSplit = "line"
    """How plain text is cut into documents: line, blank (at blank lines) or window (of tokens)."""
    max_tokens: PositiveInt | None = None
    """Most tokens in a document, special tokens included; by default the model's context."""
    on_long: OnLong | None = None
    """What to do with longer texts: truncate, window or refuse (with --max-tokens: truncate)."""
    stride: PositiveInt | None = None
    """Tokens from the start of one window to the start of the next; by default a whole window."""
    limit: PositiveInt | None = None
    """Only the first N texts of the corpus."""
    sample: PositiveInt | None = None
    """Only N texts, drawn at random and kept in the order of the corpus."""
    seed: int = 0
    """Seed of the draw."""
    special_tokens: bool = True
    """Whether the tokenizer adds its special tokens (never to chats, whose template has them)."""
    on_error: Literal["stop", "skip"] = "stop"
    """When a text cannot be used: stop, or skip it (kept as a document without tokens)."""

    @field_validator("data", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> CorpusSpec:
        if not self.data:
            raise RequestError("no corpus given; name a file, a glob or hf:NAME with --data")
        named = [
            option
            for option, value in (
                ("--text-field", self.text_field),
                ("--template", self.template),
                ("--chat", self.chat),
                ("--token-ids", self.token_ids),
            )
            if value is not None
        ]
        if len(named) > 1:
            raise RequestError(f"{' and '.join(named)} exclude each other; give one of them")
        if self.template is not None:
            Template(self.template)
        if self.stride is not None and self.long_text != "window":
            raise RequestError("--stride needs windows; add --on-long window")
        return self

    @property
    def long_text(self) -> OnLong:
        """``on_long`` with its default resolved."""
        if self.on_long is not None:
            return self.on_long
        if self.split_text == "window":
            return "window"
        return "refuse" if self.max_tokens is None else "truncate"


def corpus_sources(spec: CorpusSpec) -> list[str]:
    """The files (globs expanded, sorted) and hub data sets of the corpus, in reading order.

    Raises
    ------
    RequestError
        Where a name fits nothing, is a folder, or has no known format.
    """
    sources: list[str] = []
    for name in spec.data:
        if Path(name).is_dir():
            raise RequestError(f"{name} is a folder; name its files, such as {name}/*.jsonl")
        if Path(name).exists():
            found = [name]
        else:
            found = [n for n in sorted(glob.glob(name, recursive=True)) if Path(n).is_file()]  # noqa: PTH207
        if not found and is_hub_data(name):
            sources.append(name)
            continue
        if not found:
            raise RequestError(f"{name}: no such file; check --data (or write hf:NAME)")
        if spec.format is None:
            for path in found:
                format_of(path)
        sources.extend(found)
    return sources


def read_corpus(spec: CorpusSpec) -> Iterator[RawDocument]:
    """The texts of the corpus in order, limited and sampled as asked, not yet tokenised."""
    documents = _limited(_all_documents(spec), spec.limit)
    if spec.sample is None:
        yield from documents
    else:
        yield from _sampled(documents, spec.sample, spec.seed)


def _all_documents(spec: CorpusSpec) -> Iterator[RawDocument]:
    for source in corpus_sources(spec):
        if Path(source).exists():
            file_format = spec.format or format_of(source)
            maker = DocumentMaker(spec, file_format)
            records = read_file(source, file_format, spec.split_text)
        else:
            maker = DocumentMaker(spec, None)
            records = read_hub_data(source)
        for record in records:
            yield maker.make(record)


def _limited(documents: Iterator[RawDocument], limit: int | None) -> Iterator[RawDocument]:
    for number, document in enumerate(documents, 1):
        yield document
        if number == limit:
            return


def _sampled(documents: Iterator[RawDocument], size: int, seed: int) -> list[RawDocument]:
    kept: list[tuple[int, int, RawDocument]] = []
    for number, document in enumerate(documents):
        key = int(sample_keys(np.array([number]), seed)[0])
        if len(kept) < size:
            heapq.heappush(kept, (-key, number, document))
        elif -key > kept[0][0]:
            heapq.heapreplace(kept, (-key, number, document))
    return [document for _, _, document in sorted(kept, key=lambda entry: entry[1])]
