"""Sizes of corpora: counted with a tokenizer, estimated from bytes, extrapolated."""

from __future__ import annotations

from pathlib import Path

import pytest
from depthscope.pipeline.corpus import CorpusSpec
from depthscope.pipeline.corpus_size import corpus_size
from depthscope.pipeline.workload import CorpusSize
from depthscope.storage.errors import RequestError

from ..conftest import byte_tokenizer, write_jsonl

TEXTS = ["abcd" * 10, "ab" * 4, "x" * 12]


@pytest.fixture
def spec(tmp_path: Path) -> CorpusSpec:
    return CorpusSpec(data=(str(write_jsonl(tmp_path / "c.jsonl", [{"text": t} for t in TEXTS])),))


def test_counted_with_the_tokenizer(spec: CorpusSpec) -> None:
    """One token a byte."""
    found = corpus_size(spec, byte_tokenizer(), None)
    assert (found.rows, found.documents, found.longest) == (60, 3, 40)
    # Over tokens: 40 of them stand in a document of 40, 8 in one of 8, 12 in one of 12.
    assert found.document_tokens == pytest.approx((40 * 40 + 8 * 8 + 12 * 12) / 60)
    assert found.source == "counted"
    assert found.lengths == (40, 8, 12)


def test_estimated_from_bytes(spec: CorpusSpec) -> None:
    found = corpus_size(spec, None, None)
    assert found.lengths == (10, 2, 3)
    assert "estimated at 4 bytes" in found.source


def test_the_rest_is_extrapolated(tmp_path: Path) -> None:
    records: list[dict[str, object]] = [{"text": "ab" * 8}] * 512
    spec = CorpusSpec(data=(str(write_jsonl(tmp_path / "c.jsonl", records)),))
    found = corpus_size(spec, byte_tokenizer(), None, most_characters=100)
    # 256 documents are tokenised at a time.
    assert (found.rows, found.documents) == (512 * 16, 512)
    assert "first 50%" in found.source


def test_limits_are_those_of_extract(spec: CorpusSpec) -> None:
    short = spec.model_copy(update={"max_tokens": 15})
    assert corpus_size(short, byte_tokenizer(), None).lengths == (15, 8, 12)
    windows = short.model_copy(update={"on_long": "window"})
    assert corpus_size(windows, byte_tokenizer(), None).lengths == (15, 15, 10, 8, 12)
    with pytest.raises(RequestError, match="40 tokens where the limit is 20"):
        corpus_size(spec, byte_tokenizer(), 20)
    skipping = spec.model_copy(update={"on_error": "skip"})
    assert corpus_size(skipping, byte_tokenizer(), 20).lengths == (8, 12)


def test_token_ids_need_no_tokenizer(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", [{"ids": [1, 2, 3]}, {"ids": [4]}])
    found = corpus_size(CorpusSpec(data=(str(path),), token_ids="ids"), None, None)
    assert (found.rows, found.source) == (4, "counted")


def test_nothing_to_count(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", [])
    with pytest.raises(RequestError, match="holds no tokens"):
        corpus_size(CorpusSpec(data=(str(path),)), byte_tokenizer(), None)


def test_given() -> None:
    found = CorpusSize.of_tokens(5000, 2048)
    assert (found.documents, found.document_tokens, found.longest) == (3, 2048.0, 2048)
    assert CorpusSize.of_tokens(10, 2048).longest == 10
