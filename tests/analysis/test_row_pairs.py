"""Which rows pair, on texts cut by hand in two ways."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from depthscope.analysis.row_pairs import RowPairs, pair_rows
from depthscope.analysis.shared_documents import share_documents
from depthscope.analysis.store import open as open_store
from depthscope.storage.errors import RequestError

from .paired_stores import store

#: Two texts as two tokenizers cut them; an empty token is a special one before the text.
TEXTS = ["Layers add vectors.", "Né en été"]
WORDS = [["", "Lay", "ers", " add", " vector", "s", "."], ["", "N", "é", " en", " ", "été"]]
LETTERS = [["La", "yers", " ad", "d", " vectors", "."], ["Né", " ", "en", " é", "té"]]
#: Pairs of places by hand: tokens that end at the same character, the first of a text left out.
BY_HAND = [(2, 1), (3, 3), (5, 4), (6, 5), (10, 8), (12, 10)]


def cut(folder: Path, name: str, pieces: Sequence[Sequence[str]], **options: Any) -> Any:
    lengths = [len(tokens) for tokens in pieces]
    ends = [np.cumsum([len(t) for t in tokens]) for tokens in pieces]
    flat = [t for tokens in pieces for t in tokens]
    made = store(
        folder / name,
        np.zeros((2, sum(lengths), 4)),
        lengths,
        tokenizer=name,
        char_end=np.concatenate(ends),
        special=np.array([not t for t in flat]),
        texts=options.pop("texts", TEXTS),
        **options,
    )
    return open_store(made.root)


def paired(a: Any, b: Any, token_set: Any = "content", pairing: Any = "auto") -> RowPairs:
    return pair_rows(a, b, share_documents(a, b), token_set, pairing)


def places(found: RowPairs) -> list[tuple[int, int]]:
    return list(zip(found.source.tolist(), found.target.tolist(), strict=True))


def test_two_tokenizers_by_hand(tmp_path: Path) -> None:
    a, b = cut(tmp_path, "words", WORDS), cut(tmp_path, "letters", LETTERS)
    found = paired(a, b)
    assert places(found) == BY_HAND
    assert found.rule == "offsets"
    assert found.candidates == (11, 9)
    assert found.shares == (6 / 11, 6 / 9)
    assert found.document.tolist() == [0, 0, 0, 0, 1, 1]
    back = paired(b, a)
    assert [(t, s) for s, t in places(back)] == BY_HAND


def test_all_tokens_keep_first_positions(tmp_path: Path) -> None:
    a, b = cut(tmp_path, "words", WORDS), cut(tmp_path, "letters", LETTERS)
    # "Né" ends where "é" does, at the first position of the other store.
    assert set(places(paired(a, b, "all"))) - set(BY_HAND) == {(9, 6)}


def test_of_the_bytes_of_one_character_the_last_counts(tmp_path: Path) -> None:
    a = cut(tmp_path, "words", WORDS)
    ends = np.array([2, 6, 9, 10, 18, 19, 1, 2, 2, 5, 9])
    pieces = [LETTERS[0], ["N", "Ã", "©", " en", " été"]]
    lengths = [6, 5]
    made = store(tmp_path / "bytes", np.zeros((2, 11, 4)), lengths, tokenizer="bytes",
                 char_end=ends, texts=TEXTS)  # fmt: skip
    assert len(pieces[1]) == 5
    found = places(paired(a, open_store(made.root)))
    assert (9, 8) in found
    assert (9, 7) not in found


def test_documents_in_another_order(tmp_path: Path) -> None:
    a = cut(tmp_path, "words", WORDS)
    b = cut(tmp_path, "letters", LETTERS[::-1], texts=TEXTS[::-1])
    moved = {place: place + 5 if place < 6 else place - 6 for place in range(11)}
    assert places(paired(a, b)) == [(s, moved[t]) for s, t in BY_HAND]


def test_a_text_that_one_store_has_cut_short(tmp_path: Path) -> None:
    a = cut(tmp_path, "words", WORDS)
    pieces = [["La", "yers", " ad"], LETTERS[1]]
    b = cut(tmp_path, "short", pieces, texts=["Layers ad", TEXTS[1]])
    found = paired(a, b)
    assert [pair for pair in places(found) if pair[0] < 7] == [(2, 1)]
    c = cut(tmp_path, "other", pieces, texts=["Another text", TEXTS[1]])
    assert len(share_documents(a, c)) == 1


def test_equal_texts_pair_one_to_one_and_share_a_part(tmp_path: Path) -> None:
    sizes = [4, 6, 4, 5, 4, 7]
    digests = ["same", "x", "same", "y", "same", "z"]
    runs = []
    for name in ("a", "b"):
        made = store(tmp_path / name, np.zeros((2, 30, 4)), sizes, digests=digests)
        runs.append(open_store(made.root))
    shared = share_documents(*runs)
    assert shared.source.tolist() == shared.target.tolist() == list(range(6))
    for seed in range(20):
        parts = shared.parts(0.3, 0.3, seed)
        assert parts[0] == parts[2] == parts[4]
        assert set(parts.tolist()) == {0, 1, 2}


def test_parts_do_not_change_when_a_corpus_grows(tmp_path: Path) -> None:
    found = []
    for name, count in (("small", 60), ("large", 200)):
        made = store(tmp_path / name, np.zeros((2, 2 * count, 4)), [2] * count,
                     digests=[f"d{n}" for n in range(count)])  # fmt: skip
        run = open_store(made.root)
        found.append(share_documents(run, run).parts(0.1, 0.2, 5))
    assert found[0].tolist() == found[1][:60].tolist()
    shares = np.bincount(found[1]) / 200
    np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], atol=0.08)


def test_refused_without_texts(tmp_path: Path) -> None:
    a, b = cut(tmp_path, "words", WORDS), cut(tmp_path, "letters", LETTERS)
    path = tmp_path / "letters" / "documents.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["text"]), path)
    with pytest.raises(RequestError, match="holds no text, and the tokenizers differ"):
        share_documents(a, b)


def test_too_few_documents(tmp_path: Path) -> None:
    a = cut(tmp_path, "words", WORDS)
    with pytest.raises(RequestError, match="2 different documents are shared, and maps need three"):
        share_documents(a, a).parts(0.1, 0.1, 0)
    shared = share_documents(
        a, cut(tmp_path, "letters", LETTERS, texts=["Something else", TEXTS[1]])
    )
    with pytest.raises(RequestError, match=r"share 1 of 2 documents \(documents 1 of the first\)"):
        shared.require(0.6, ("a", "b"))
