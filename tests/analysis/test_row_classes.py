"""Onset by part of speech, by place in an answer and among options, on corpora written by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from depthscope.analysis import open as open_store
from depthscope.analysis.onset import onset
from depthscope.analysis.token_labels import FACTS, TAGS, answer_tokens, parts_of_speech
from depthscope.storage.errors import RequestError

from .ordered_store import ordered_store, set_columns
from .small_store import SmallStore

NONE = np.arange(0)


def corpus(
    root: Path,
    texts: Sequence[Sequence[str]],
    guesses: Sequence[Sequence[Sequence[int]]] | None = None,
    **fields: Any,
) -> SmallStore:
    """Documents as lists of token texts; ids are numbers of different texts."""
    pieces = [piece for tokens in texts for piece in tokens]
    names = list(dict.fromkeys(pieces))
    ids = np.array([names.index(piece) for piece in pieces])
    rows = guesses or [[[0], [token]] for token in ids.tolist()]
    made = ordered_store(
        root, rows, [len(tokens) for tokens in texts], 24, token_ids=ids, lens_rows=NONE
    )
    ends = [np.cumsum([len(piece) for piece in tokens]) for tokens in texts]
    end = np.concatenate(ends)
    start = end - [len(piece) for piece in pieces]
    set_columns(
        root / "tokens.parquet",
        {
            "token": pa.array(pieces),
            "char_start": pa.array(start, pa.int32()),
            "char_end": pa.array(end, pa.int32()),
        },
    )
    whole = {"text": pa.array(["".join(tokens) for tokens in texts])}
    set_columns(root / "documents.parquet", whole | {k: pa.array(v) for k, v in fields.items()})
    return made


SENTENCES = [
    ["Un", "believ", "able", " story", ":", " don", "'t", " go"],
    ["The", " AP", " comes", " ."],
    ["Other", " text"],
]
WORDS = [["Unbelievable", "story", ":", "do", "n't", "go"], ["The", "AP", "comes", "."], ["Odd"]]
UPOS = [["ADJ", "NOUN", "PUNCT", "AUX", "PART", "VERB"], ["DET", "PROPN", "VERB", "PUNCT"], ["X"]]


def test_parts_of_speech_by_character(tmp_path: Path) -> None:
    made = corpus(
        tmp_path / "s",
        SENTENCES,
        tokens=[json.dumps(words) for words in WORDS],
        upos=[json.dumps(tags) for tags in UPOS],
    )
    found = parts_of_speech(open_store(made.root))
    places = found.of(np.arange(made.rows))
    names = [TAGS[place] if place >= 0 else None for place in places]
    # What follows each row; " don" holds the beginning of "do", and "'t" that of no word.
    assert names[:7] == [None, None, "NOUN", "PUNCT", "AUX", None, "VERB"]
    assert names[8:12] == ["PROPN", "VERB", "PUNCT", None]
    assert found.unaligned == 1
    assert found.of(np.array([-1])).tolist() == [TAGS.index("ADJ")]


def test_onset_by_part_of_speech(tmp_path: Path) -> None:
    ids = {"The": 0, " AP": 1, " comes": 2, " .": 3}
    guesses = [
        [[5], [1]],  # what follows is " AP"; right, at point 1
        [[2], [2]],  # " comes"; right, at point 0
        [[5], [5]],  # " ."; wrong, at point 0
        [[5], [4]],
    ]
    made = corpus(
        tmp_path / "s",
        [list(ids)],
        guesses,
        tokens=[json.dumps(WORDS[1])],
        upos=[json.dumps(UPOS[1])],
    )
    result = onset(open_store(made.root), "pos", ranks=(1,), resamples=20)
    assert result.attrs["analysis"] == "onset_pos"
    assert (made.root / "analysis" / "onset_pos.zarr").is_dir()
    at = result.sel(token_set="all", criterion="first", rank=1)
    right, wrong = at.sel(outcome="correct"), at.sel(outcome="incorrect")
    assert float(right.depth_mean.sel({"class": "PROPN"})) == 1
    assert float(right.depth_mean.sel({"class": "VERB"})) == 0
    assert int(right["count"].sel({"class": "any"})) == 2
    assert float(wrong.depth_mean.sel({"class": "PUNCT"})) == 0
    assert int(wrong["count"].sum("class")) == 2  # itself, and any
    assert int(at.sel(outcome="all")["count"].sel({"class": "DET"})) == 0


def test_tokens_of_an_answer(tmp_path: Path) -> None:
    made = corpus(
        tmp_path / "s",
        [
            ["Rome", " is", " in", " It", "aly"],
            ["It", " is", " in", " New", " York", " City", "."],
            ["a", " b", " c", " d", " e", " f"],
            ["nothing", " here"],
            ["x", " Apple", "s"],
        ],
        attribute=["Italy", "New York City", "b c d e f", "Paris", "Apple"],
    )
    found = answer_tokens(open_store(made.root), None)
    places = found.of(np.arange(-1, made.rows - 1))
    names = [FACTS[place] if place >= 0 else None for place in places]
    assert names[:5] == [None, None, None, "1 of 2", "2 of 2"]
    assert names[5:12] == [None, None, None, "1 of 3", "2 of 3", "3 of 3", None]
    assert names[12:18] == [None, "1 of more than 3", None, None, None, None]
    assert names[18:] == [None, None, None, "1 of 1", None]
    assert found.unaligned == 1
    result = onset(open_store(made.root), "fact", ranks=(1,), resamples=20)
    counts = result["class_rows"].sel(token_set="all", outcome="all", criterion="first", rank=1)
    assert counts.values.tolist() == [1, 1, 1, 1, 1, 1, 1, 7]
    assert result.attrs["parameters"]["answer"] == "attribute"


LETTERED = [
    ["Q1", " A", " B", " C", " D", ":", " B"],
    ["Q2", ":", " D"],
    ["Q3", ":"],
    ["Q4", ":"],
]


def test_options(tmp_path: Path) -> None:
    ids = {"Q1": 0, " A": 1, " B": 2, " C": 3, " D": 4, ":": 5, "Q2": 6}
    filler = [[0], [0], [0]]
    guesses = [
        *[filler] * 5,
        [[9, 1, 2], [2, 1], [2, 4]],  # B is second, first, first: right
        filler,
        *[filler] * 1,
        [[3, 4], [4, 3], [3, 4]],  # D is the right one, C is chosen; first at 0, for good at 2
        filler,
        filler,
        [[1, 2, 4, 3], [1, 2, 4, 3], [1, 2, 4, 3]],  # C is the right one, and comes last
        filler,
        filler,
    ]
    assert [ids[piece] for piece in LETTERED[1][1:]] == [5, 4]
    made = corpus(tmp_path / "s", LETTERED, guesses, answerKey=["B", "4", "C", "E"])
    run = open_store(made.root)
    result = onset(run, "options", ranks=(1, 2), resamples=20)
    at = result.sel(token_set="all", criterion="first", rank=1)
    every = at.sel(outcome="all")
    assert every["count"].values.tolist() == [1, 1, 1, 0, 3]
    np.testing.assert_allclose(every.depth_mean, [0, 1, 0, np.nan, 1 / 3])
    stays = result.sel(token_set="all", criterion="stays", rank=1, outcome="all")
    np.testing.assert_allclose(stays.depth_mean, [0, 1, 2, np.nan, 1])
    assert at.sel(outcome="correct")["count"].values.tolist() == [0, 1, 0, 0, 1]
    assert result.attrs["parameters"]["option_tokens"] == [1, 2, 3, 4]
    gold = onset(run, "options", target="next", ranks=(1, 2), out=tmp_path / "gold.zarr")
    at = gold.sel(token_set="all", criterion="first", outcome="all")
    # A is never right; B as before; C never comes up; D at 1 and, among the best two, at 0.
    np.testing.assert_allclose(at.depth_mean.sel(rank=1), [np.nan, 1, np.nan, 1, 1])
    np.testing.assert_allclose(at.depth_mean.sel(rank=2), [np.nan, 0, np.nan, 0, 0])
    np.testing.assert_allclose(at.reached.sel({"class": "any"}), [2 / 3, 2 / 3])


def test_numbers_name_options_from_zero(tmp_path: Path) -> None:
    made = corpus(tmp_path / "s", LETTERED, answer=[1, 3, 0, 7])
    result = onset(open_store(made.root), "options", target="next", resamples=20)
    rows = result["class_rows"].sel(token_set="all", outcome="all", criterion="first", rank=1)
    assert rows.values.tolist() == [1, 1, 0, 1, 3]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    plain = corpus(tmp_path / "a", SENTENCES)
    wrong = corpus(
        tmp_path / "b",
        SENTENCES,
        tokens=["[]", "no list", None],
        upos=["[1]", "[]", None],
        attribute=["Paris", "", "Rome"],
        answer=[0, 1, 2],
    )
    none = corpus(tmp_path / "c", SENTENCES, answer=["it", "is", "none"])
    cases: list[tuple[SmallStore, Any, str]] = [
        (plain, "pos", "there is no field tokens and no field upos"),
        (plain, "fact", "there is no field attribute"),
        (plain, "options", "there is no field answer or answerKey"),
        (wrong, "pos", "tokens and upos are no words of the text of any document"),
        (wrong, "fact", "attribute is nowhere in the text"),
        (wrong, "options", "' A', ' B', ' C', ' D' is no token of the corpus"),
        (none, "options", "no document has one of A, B, C, D as its answer"),
    ]
    for made, by, message in cases:
        with pytest.raises(RequestError, match=message) as raised:
            onset(open_store(made.root), by)
        assert "\n" not in str(raised.value)
