"""From texts to rows: ids, offsets, roles, windows, counts. The reference calls the tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from depthscope.pipeline.chat import ChatRenderer
from depthscope.pipeline.corpus import CorpusSpec
from depthscope.pipeline.tokens import CorpusSummary, tokenize_corpus
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths
from depthscope.storage.tables import TableWriter
from depthscope.storage.token_table import TokenTable
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "the cat sat on the mat",
    "naïve café 漢字 and 😀 emoji",
    "  leading spaces and\nnew lines\n",
    "the end",
]

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
# Not a prefix of itself: the end mark stands after the last message only, contents are stripped,
# and a conversation must not end with the system's message.
CLOSED = (
    "{% if messages[-1]['role'] == 'system' %}{{ raise_exception('no user') }}{% endif %}"
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}"
    "{% if loop.last %}<|im_end|>{% else %};{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def byte_tokenizer() -> Any:
    """A byte-level BPE, in the manner of GPT-2, that adds a begin and an end token."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(SENTENCES * 3, trainer)
    raw.add_special_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>")])
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", chat_template=CHATML
    )


@pytest.fixture(scope="module")
def word_tokenizer() -> Any:
    """One word, one token; nothing added."""
    words = {f"w{n}": n for n in range(50)}
    raw = Tokenizer(models.WordLevel({**words, "[UNK]": 50}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]")


def jsonl(path: Path, records: list[Any]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


def tokenized(
    root: Path, tokenizer: Any, context: int | None = None, **options: Any
) -> tuple[CorpusSummary, dict[str, list[Any]], list[dict[str, Any]]]:
    """The summary, the token table by columns, the documents by rows."""
    root.mkdir(exist_ok=True)
    with TableWriter(StorePaths(root)) as writer:
        summary = tokenize_corpus(CorpusSpec(**options), tokenizer, context, writer)
    table = TokenTable(root)
    return (
        summary,
        table.read_rows(0, table.rows).to_pydict(),
        table.read_documents().to_pylist(),
    )


def refusal(root: Path, tokenizer: Any, context: int | None = None, **options: Any) -> str:
    with pytest.raises(RequestError) as caught:
        tokenized(root, tokenizer, context, **options)
    assert not (root / "tokens.parquet").exists()
    assert not list(root.rglob("*.parquet"))
    message = str(caught.value)
    assert "\n" not in message
    return message


def words(count: int, start: int = 0) -> str:
    return " ".join(f"w{(start + n) % 50}" for n in range(count))


def test_rows_are_what_the_tokenizer_says(tmp_path: Path, byte_tokenizer: Any) -> None:
    path = jsonl(tmp_path / "c.jsonl", [{"text": s, "n": n} for n, s in enumerate(SENTENCES)])
    summary, rows, documents = tokenized(tmp_path / "s", byte_tokenizer, data=path)
    expected = [byte_tokenizer(s, return_offsets_mapping=True) for s in SENTENCES]
    ids = [number for e in expected for number in e["input_ids"]]
    assert rows["token_id"] == ids
    assert rows["row"] == list(range(len(ids))) == list(range(summary.rows))
    assert rows["document"] == [d for d, e in enumerate(expected) for _ in e["input_ids"]]
    assert rows["position"] == [p for e in expected for p in range(len(e["input_ids"]))]
    assert rows["token"] == [byte_tokenizer.decode([number]) for number in ids]
    offsets = [
        (-1, -1) if number in (0, 1) else pair
        for e in expected
        for number, pair in zip(e["input_ids"], e["offset_mapping"], strict=True)
    ]
    assert list(zip(rows["char_start"], rows["char_end"], strict=True)) == offsets
    assert rows["special"] == [number in (0, 1) for number in ids]
    assert set(rows["role"]) == {None}
    assert all(rows["valid"])
    assert [d["text"] for d in documents] == SENTENCES
    assert [d["n_tokens"] for d in documents] == [len(e["input_ids"]) for e in expected]
    assert [d["first_row"] for d in documents] == [rows["document"].index(d) for d in range(4)]
    assert [d["n"] for d in documents] == [0, 1, 2, 3]
    assert (summary.documents, summary.texts, summary.longest) == (
        4,
        4,
        max(d["n_tokens"] for d in documents),
    )
    assert [(s.path, s.documents) for s in summary.sources] == [(path, 4)]
    assert summary.sources[0].digest == blake3(Path(path).read_bytes()).hexdigest()


def test_digests(tmp_path: Path, byte_tokenizer: Any) -> None:
    path = jsonl(tmp_path / "c.jsonl", [{"text": s} for s in SENTENCES])
    summary, _, documents = tokenized(tmp_path / "s", byte_tokenizer, data=path)
    whole = blake3()
    for sentence, document in zip(SENTENCES, documents, strict=True):
        ids = byte_tokenizer(sentence)["input_ids"]
        packed = b"".join(number.to_bytes(4, "little") for number in ids)
        assert document["digest"] == blake3(packed).hexdigest()[:32]
        whole.update(len(ids).to_bytes(8, "little") + packed)
    assert summary.digest == whole.hexdigest()


def test_special_tokens_can_be_left_out(tmp_path: Path, byte_tokenizer: Any) -> None:
    path = jsonl(tmp_path / "c.jsonl", [{"text": "the <|im_start|> cat"}])
    _, rows, _ = tokenized(tmp_path / "s", byte_tokenizer, data=path, special_tokens=False)
    assert 0 not in rows["token_id"]
    named = [t for t, s in zip(rows["token"], rows["special"], strict=True) if s]
    assert named == ["<|im_start|>"]


def test_sentencepiece_tokens_keep_their_space(tmp_path: Path) -> None:
    raw = Tokenizer(models.BPE({"▁": 0, "a": 1, "▁a": 2, "▁▁": 3, "<unk>": 4}, [("▁", "a")]))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    path = jsonl(tmp_path / "c.jsonl", [{"ids": [2, 1, 2, 0, 3]}])
    _, rows, _ = tokenized(tmp_path / "s", tokenizer, data=path, token_ids="ids")
    assert rows["token"] == [" a", "a", " a", " ", "  "]


def test_duplicates_are_counted_and_kept(tmp_path: Path, word_tokenizer: Any) -> None:
    path = jsonl(tmp_path / "c.jsonl", [{"text": t} for t in ("w1 w2", "w2 w1", "w1  w2", "w1 w2")])
    summary, _, documents = tokenized(tmp_path / "s", word_tokenizer, data=path)
    assert summary.duplicates == 2
    assert len(documents) == 4


def test_too_long_a_document_is_refused_by_name(tmp_path: Path, word_tokenizer: Any) -> None:
    path = jsonl(tmp_path / "c.jsonl", [{"text": "w1"}, {"text": words(11)}])
    message = refusal(tmp_path / "s", word_tokenizer, 10, data=path)
    assert f"{path}, line 2: 11 tokens where the limit is 10" in message
    assert "--on-long" in message
    options: dict[str, Any] = {"data": path, "max_tokens": 5, "on_long": "refuse"}
    assert "the limit is 5" in refusal(tmp_path / "s", word_tokenizer, 10, **options)
    message = refusal(tmp_path / "s", word_tokenizer, 10, data=path, max_tokens=11)
    assert "beyond the model's context of 10" in message


def test_truncation_keeps_special_tokens_and_shortens_the_text(
    tmp_path: Path, byte_tokenizer: Any
) -> None:
    path = jsonl(tmp_path / "c.jsonl", [{"text": SENTENCES[0]}, {"text": "the"}])
    full = byte_tokenizer(SENTENCES[0], return_offsets_mapping=True)
    summary, rows, documents = tokenized(tmp_path / "s", byte_tokenizer, data=path, max_tokens=6)
    assert rows["token_id"][:6] == [0, *full["input_ids"][1:5], 1]
    end = full["offset_mapping"][4][1]
    assert documents[0]["text"] == SENTENCES[0][:end]
    assert (summary.truncated, summary.windowed, summary.token_limit) == (1, 0, 6)


@pytest.mark.parametrize(
    ("count", "size", "stride", "expected"),
    [
        (10, 4, None, [(0, 4), (4, 8), (8, 10)]),
        (8, 4, None, [(0, 4), (4, 8)]),
        (10, 4, 2, [(0, 4), (2, 6), (4, 8), (6, 10)]),
        (9, 4, 3, [(0, 4), (3, 7), (6, 9)]),
        (3, 4, None, [(0, 3)]),
    ],
)
def test_windows(
    tmp_path: Path, word_tokenizer: Any, count: int, size: int, stride: int | None, expected: Any
) -> None:
    text = words(count)
    path = jsonl(tmp_path / "c.jsonl", [{"text": text, "name": "x"}])
    _, rows, documents = tokenized(
        tmp_path / "s", word_tokenizer, data=path, max_tokens=size, on_long="window", stride=stride
    )
    assert rows["token_id"] == [n for first, last in expected for n in range(first, last)]
    assert rows["position"] == [n for first, last in expected for n in range(last - first)]
    assert [d["window"] for d in documents] == list(range(len(expected)))
    assert {d["name"] for d in documents} == {"x"}
    for document, (first, last) in zip(documents, expected, strict=True):
        assert document["text"].split() == text.split()[first:last]
        start = document["first_row"]
        for row in range(start, start + document["n_tokens"]):
            piece = document["text"][rows["char_start"][row] : rows["char_end"][row]]
            assert piece == rows["token"][row]


def test_windows_of_a_file_know_their_lines(tmp_path: Path, byte_tokenizer: Any) -> None:
    path = tmp_path / "c.txt"
    text = "\n".join(SENTENCES[0] for _ in range(30))
    path.write_text(text)
    _, rows, documents = tokenized(
        tmp_path / "s", byte_tokenizer, data=str(path), split_text="window", max_tokens=17
    )
    assert "".join(d["text"] for d in documents) == text
    seen = ""
    for document in documents:
        assert document["line"] == 1 + seen.count("\n")
        seen += document["text"]
    firsts = [rows["token_id"][d["first_row"]] for d in documents]
    assert set(firsts) == {0}
    assert max(d["n_tokens"] for d in documents) == 17


def test_long_files_are_cut_in_blocks(
    tmp_path: Path, word_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("depthscope.pipeline.readers.WINDOW_BLOCK", 40)
    path = tmp_path / "c.txt"
    lines = [words(5, 5 * n) + "\n" for n in range(20)]
    path.write_text("".join(lines))
    blocks, size = 1, 0
    for line in lines[:-1]:
        size += len(line)
        if size >= 40:
            blocks, size = blocks + 1, 0
    summary, rows, _ = tokenized(
        tmp_path / "s", word_tokenizer, data=str(path), split_text="window", max_tokens=4
    )
    assert rows["token_id"] == [n % 50 for n in range(100)]
    assert summary.texts == blocks > 3


def test_bad_windows(tmp_path: Path, word_tokenizer: Any, byte_tokenizer: Any) -> None:
    path = jsonl(tmp_path / "c.jsonl", [{"text": words(30)}])
    options: dict[str, Any] = {"data": path, "on_long": "window"}
    assert "give --max-tokens" in refusal(tmp_path / "s", word_tokenizer, **options)
    message = refusal(tmp_path / "s", word_tokenizer, max_tokens=4, stride=5, **options)
    assert "--stride 5 would leave out tokens" in message
    assert "no room" in refusal(tmp_path / "s", byte_tokenizer, max_tokens=2, **options)


def test_empty_documents(tmp_path: Path, word_tokenizer: Any, byte_tokenizer: Any) -> None:
    path = jsonl(tmp_path / "c.jsonl", [{"text": "w1"}, {"text": ""}, {"text": "w2 w3"}])
    for tokenizer in (word_tokenizer, byte_tokenizer):
        message = refusal(tmp_path / "s", tokenizer, data=path)
        assert f"{path}, line 2: the document is empty" in message
    summary, rows, documents = tokenized(tmp_path / "s", word_tokenizer, data=path, on_error="skip")
    assert [d["n_tokens"] for d in documents] == [1, 0, 2]
    assert [d["first_row"] for d in documents] == [0, 1, 1]
    assert rows["document"] == [0, 2, 2]
    assert "is empty" in documents[1]["read_error"]
    assert documents[0]["read_error"] is None
    assert summary.skipped == 1


def test_an_empty_corpus(tmp_path: Path, word_tokenizer: Any) -> None:
    path = jsonl(tmp_path / "c.jsonl", [])
    assert "the corpus is empty" in refusal(tmp_path / "s", word_tokenizer, data=path)
    path = jsonl(tmp_path / "c.jsonl", [{"text": 1}])
    options: dict[str, Any] = {"data": path, "text_field": "texts", "on_error": "skip"}
    assert "the corpus is empty" in refusal(tmp_path / "s", word_tokenizer, **options)


def test_token_ids(tmp_path: Path, word_tokenizer: Any) -> None:
    path = jsonl(tmp_path / "c.jsonl", [{"ids": [1, 2, 3], "n": 1}, {"ids": [4], "n": 2}])
    _, rows, documents = tokenized(tmp_path / "s", word_tokenizer, data=path, token_ids="ids")
    assert rows["token_id"] == [1, 2, 3, 4]
    assert rows["token"] == ["w1", "w2", "w3", "w4"]
    assert set(rows["char_start"]) == {-1}
    assert [d["text"] for d in documents] == ["w1 w2 w3", "w4"]
    assert [d["n"] for d in documents] == [1, 2]
    _, rows, documents = tokenized(tmp_path / "s2", None, data=path, token_ids="ids", max_tokens=2)
    assert rows["token_id"] == [1, 2, 4]
    assert set(rows["token"]) == {None}
    assert {d["text"] for d in documents} == {None}
    path = jsonl(tmp_path / "c.jsonl", [{"ids": [1]}, {"ids": [1, 51]}])
    message = refusal(tmp_path / "s3", word_tokenizer, data=path, token_ids="ids")
    assert "line 2: token id 51 is outside the vocabulary of 51" in message


CONVERSATIONS = [
    [("user", "the cat"), ("assistant", "sat on"), ("user", "the"), ("assistant", "mat é")],
    [("system", "kind"), ("user", "user"), ("assistant", "user")],
    [("user", "the end")],
]


def chats(path: Path) -> str:
    return jsonl(
        path,
        [{"m": [{"role": r, "content": c} for r, c in talk], "n": 1} for talk in CONVERSATIONS],
    )


def by_role(rows: dict[str, list[Any]], document: int, tokenizer: Any) -> list[tuple[str, str]]:
    """Neighbouring tokens of one role, decoded together."""
    found: list[tuple[str, list[int]]] = []
    for number, owner, role in zip(rows["token_id"], rows["document"], rows["role"], strict=True):
        if owner != document:
            continue
        if not found or found[-1][0] != role:
            found.append((role, []))
        found[-1][1].append(number)
    return [(role, tokenizer.decode(ids)) for role, ids in found]


def test_chats_keep_every_tokens_role(tmp_path: Path, byte_tokenizer: Any) -> None:
    path = chats(tmp_path / "c.jsonl")
    _, rows, documents = tokenized(tmp_path / "s", byte_tokenizer, data=path, chat="m")
    for number, talk in enumerate(CONVERSATIONS):
        expected = [(r, f"<|im_start|>{r}\n{c}<|im_end|>\n") for r, c in talk]
        if talk[0][0] != "system":
            expected.insert(0, ("system", "<|im_start|>system\nBe kind.<|im_end|>\n"))
        assert by_role(rows, number, byte_tokenizer) == expected
        assert documents[number]["text"] == "".join(text for _, text in expected)
    assert 0 not in rows["token_id"]
    assert "m" not in documents[0]
    assert documents[0]["n"] == 1


def test_roles_under_a_template_that_is_no_prefix_of_itself(
    tmp_path: Path, byte_tokenizer: Any
) -> None:
    talk = [("system", " kind "), ("user", "the cat"), ("assistant", " sat"), ("user", "mat")]
    path = jsonl(tmp_path / "c.jsonl", [{"m": [{"role": r, "content": c} for r, c in talk]}])
    byte_tokenizer.chat_template = CLOSED
    try:
        _, rows, _ = tokenized(tmp_path / "s", byte_tokenizer, data=path, chat="m")
        ends = jsonl(tmp_path / "e.jsonl", [{"m": [{"role": "system", "content": "x"}]}])
        message = refusal(tmp_path / "e", byte_tokenizer, data=ends, chat="m")
    finally:
        byte_tokenizer.chat_template = CHATML
    roles = [role for role, _ in by_role(rows, 0, byte_tokenizer)]
    assert roles == ["system", "user", "assistant", "user"]
    owner = dict(zip(rows["token"], rows["role"], strict=True))
    assert owner["<|im_end|>"] == "user"
    text = dict(by_role(rows, 0, byte_tokenizer)[:3])
    assert "kind" in text["system"]
    assert "the cat" in text["user"]
    assert "sat" in text["assistant"]
    assert "line 1: the chat template refuses the conversation (no user)" in message


def test_roles_survive_windows(tmp_path: Path, byte_tokenizer: Any) -> None:
    path = chats(tmp_path / "c.jsonl")
    _, whole, _ = tokenized(tmp_path / "s", byte_tokenizer, data=path, chat="m")
    options: dict[str, Any] = {"max_tokens": 7, "on_long": "window"}
    _, cut, _ = tokenized(tmp_path / "w", byte_tokenizer, data=path, chat="m", **options)
    assert cut["token_id"] == whole["token_id"]
    assert cut["role"] == whole["role"]


def test_roles_without_offsets(tmp_path: Path, byte_tokenizer: Any) -> None:
    class Slow:
        """The same tokenizer, without offsets."""

        is_fast = False

        def __getattr__(self, name: str) -> Any:
            return getattr(byte_tokenizer, name)

        def __len__(self) -> int:
            return len(byte_tokenizer)

        def __call__(self, *given: Any, **options: Any) -> Any:
            assert not options["return_offsets_mapping"]
            return byte_tokenizer(*given, **options)

    path = chats(tmp_path / "c.jsonl")
    _, fast, _ = tokenized(tmp_path / "s", byte_tokenizer, data=path, chat="m")
    _, slow, _ = tokenized(tmp_path / "w", Slow(), data=path, chat="m")
    assert slow["role"] == fast["role"]
    assert set(slow["char_start"]) == {-1}
    path = jsonl(tmp_path / "t.jsonl", [{"text": SENTENCES[0]}])
    _, rows, documents = tokenized(tmp_path / "t", Slow(), data=path, max_tokens=6)
    assert documents[0]["text"] == byte_tokenizer.decode(rows["token_id"][1:5])


def test_chat_needs_a_template(word_tokenizer: Any) -> None:
    with pytest.raises(RequestError, match="no chat template"):
        ChatRenderer(word_tokenizer)


def test_batches_change_nothing(
    tmp_path: Path, byte_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = jsonl(tmp_path / "c.jsonl", [{"text": SENTENCES[n % 4] + str(n)} for n in range(50)])
    seen: list[tuple[int, int]] = []
    one, _, _ = tokenized(tmp_path / "a", byte_tokenizer, data=path)
    monkeypatch.setattr("depthscope.pipeline.tokens._BATCH_TEXTS", 3)
    (tmp_path / "b").mkdir()
    with TableWriter(StorePaths(tmp_path / "b")) as writer:
        two = tokenize_corpus(
            CorpusSpec(data=(path,)),
            byte_tokenizer,
            None,
            writer,
            on_progress=lambda documents, rows: seen.append((documents, rows)),
        )
    assert one == two
    for name in ("tokens.parquet", "documents.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert len(seen) == 17
    assert seen[-1] == (50, two.rows)
    assert np.all(np.diff(seen, axis=0) > 0)
