"""Reading a corpus: every format, every way to choose a text, every complaint."""

from __future__ import annotations

import csv
import gzip
import json
import sys
import tracemalloc
import types
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from depthscope.pipeline.corpus import CorpusSpec, corpus_sources, read_corpus
from depthscope.pipeline.template import unescape
from depthscope.storage.errors import RequestError

RECORDS: list[dict[str, Any]] = [
    {"text": "first é 漢", "level": 3, "tags": ["a", "b"]},
    {"text": 'second, with "quotes"', "level": 1, "tags": []},
    {"text": "third", "level": 2, "tags": ["c"]},
]


def jsonl(path: Path, records: list[Any]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


def texts(**options: Any) -> list[str | None]:
    return [d.text for d in read_corpus(CorpusSpec(**options))]


def refusal(**options: Any) -> str:
    with pytest.raises(RequestError) as caught:
        list(read_corpus(CorpusSpec(**options)))
    message = str(caught.value)
    assert "\n" not in message
    return message


def write_as(path: Path) -> None:
    plain = path.with_suffix("") if path.suffix in (".gz", ".zst") else path
    if plain.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(RECORDS), path)
        return
    if plain.suffix == ".jsonl":
        content = "\n".join(json.dumps(r, ensure_ascii=False) for r in RECORDS)
    elif plain.suffix == ".json":
        content = json.dumps(RECORDS, indent=2)
    else:
        lines = [["text", "level"], *[[r["text"], r["level"]] for r in RECORDS]]
        with plain.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(lines)
        content = plain.read_text(encoding="utf-8")
    data = content.encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    if path.suffix == ".zst":
        data = zstandard.compress(data)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name",
    [
        "c.jsonl",
        "c.json",
        "c.csv",
        "c.parquet",
        "c.jsonl.gz",
        "c.json.zst",
        "c.csv.gz",
        "c.jsonl.zst",
    ],
)
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    write_as(tmp_path / name)
    found = list(read_corpus(CorpusSpec(data=(str(tmp_path / name),))))
    assert [d.text for d in found] == [r["text"] for r in RECORDS]
    assert [d.fields["level"] for d in found] == [3, 1, 2]
    assert "text" not in found[0].fields
    first_line = 2 if ".csv" in name else 1
    assert [d.line for d in found] == [first_line, first_line + 1, first_line + 2]
    assert found[0].source == str(tmp_path / name)
    if ".csv" not in name:
        assert found[0].fields["tags"] == ["a", "b"]


def test_a_json_array_on_one_line_streams_through_small_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("depthscope.pipeline.text_stream._READ_BYTES", 7)
    values = [{"text": "é" * n + '"]},{[', "x": [n, None, True, 1.5e-7]} for n in range(40)]
    path = tmp_path / "c.json"
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    assert texts(data=str(path)) == [v["text"] for v in values]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ('[{"text": "a"}, {"text": }]', "record 2"),
        ('[{"text": "a"}, {"text": "b"', "record 2"),
        ('[{"text": "a"} {"text": "b"}]', "expected ',' or ']'"),
        ('[{"text": "a"}] more', "more follows"),
        ('[{"text": "a"}', "not closed"),
    ],
)
def test_broken_json_arrays(tmp_path: Path, content: str, part: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(content)
    message = refusal(data=str(path))
    assert part in message
    assert str(path) in message


def test_a_json_file_may_hold_one_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"text": "a"}\n\n{"text": "b"}\n')
    assert texts(data=str(path)) == ["a", "b"]


PLAIN = "One.\nTwo é.\n\n\nThree.\r\n  \nFour."


@pytest.mark.parametrize(
    ("split", "expected", "lines"),
    [
        ("line", ["One.", "Two é.", "Three.", "Four."], [1, 2, 5, 7]),
        ("blank", ["One.\nTwo é.", "Three.", "Four."], [1, 5, 7]),
        ("window", ["One.\nTwo é.\n\n\nThree.\n  \nFour."], [1]),
    ],
)
def test_plain_text(tmp_path: Path, split: Any, expected: list[str], lines: list[int]) -> None:
    path = tmp_path / "c.txt"
    path.write_bytes(b"\xef\xbb\xbf" + PLAIN.encode())
    found = list(read_corpus(CorpusSpec(data=(str(path),), split_text=split)))
    assert [d.text for d in found] == expected
    assert [d.line for d in found] == lines


def test_globs_are_sorted_and_named(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        jsonl(tmp_path / f"{name}.jsonl", [{"text": name}])
    (tmp_path / "folder.jsonl").mkdir()
    found = list(read_corpus(CorpusSpec(data=(str(tmp_path / "*.jsonl"),))))
    assert [d.text for d in found] == ["a", "b", "c"]
    assert found[1].source == str(tmp_path / "b.jsonl")
    assert corpus_sources(CorpusSpec(data=(str(tmp_path / "[bc].jsonl"),))) == [
        str(tmp_path / "b.jsonl"),
        str(tmp_path / "c.jsonl"),
    ]


def test_a_template_reaches_into_nested_fields(tmp_path: Path) -> None:
    record = {"q": {"stem": "why", "n": [1, 2]}, "a": 1.5, "b": None, "c": True, "d.e": "dotted"}
    path = jsonl(tmp_path / "c.jsonl", [record])
    template = "{{{q.stem}}}|{q.n[1]}|{a}|{b}|{c}|{q.n}|{d.e}"
    assert texts(data=path, template=template) == ["{why}|2|1.5||true|[1, 2]|dotted"]
    found = next(iter(read_corpus(CorpusSpec(data=(path,), template="{a}"))))
    assert found.fields == record


def test_unescape_reads_what_a_shell_passes_on() -> None:
    assert unescape(r"{q}\n{a}\t\\n\frac") == "{q}\n{a}\t\\n\\frac"


def test_the_only_string_is_the_text(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "c.jsonl", [{"id": 1, "prompt": "p"}, {"id": 2, "prompt": "q"}])
    assert texts(data=path) == ["p", "q"]


def test_limit_and_sample(tmp_path: Path) -> None:
    names = [f"t{n}" for n in range(200)]
    path = jsonl(tmp_path / "c.jsonl", [{"text": name} for name in names])
    assert texts(data=path, limit=3) == names[:3]
    drawn = texts(data=path, sample=20, seed=1)
    assert len(set(drawn)) == 20
    assert drawn == [name for name in names if name in set(drawn)]
    assert drawn == texts(data=path, sample=20, seed=1)
    assert drawn != texts(data=path, sample=20, seed=2)
    assert set(texts(data=path, sample=10, seed=1)) < set(drawn)
    assert set(texts(data=path, sample=20, seed=1, limit=50)) <= set(names[:50])
    assert texts(data=path, sample=500) == names


def test_sampling_is_even(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "c.jsonl", [{"text": str(n)} for n in range(10)])
    hits = [0] * 10
    for seed in range(400):
        for text in texts(data=path, sample=3, seed=seed):
            hits[int(text or "")] += 1
    # 400 draws of 3 in 10: 120 expected each, standard deviation 9.2.
    assert all(80 < hit < 160 for hit in hits)


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    peaks = []
    for size in (300, 3000):
        path = jsonl(
            tmp_path / f"{size}.jsonl", [{"text": "x" * 2000, "n": n} for n in range(size)]
        )
        tracemalloc.start()
        assert sum(1 for _ in read_corpus(CorpusSpec(data=(path,)))) == size
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 200_000


def test_bad_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b",}\n')
    assert f"{path}, line 2: broken JSON" in refusal(data=str(path))
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    message = refusal(data=str(path))
    assert f"{path}, line 2: not UTF-8 at byte 24" in message
    path.write_text('{"text": "a"}\n[1, 2]\n')
    assert "line 2: not a JSON object" in refusal(data=str(path))
    path.write_text('{"text": "\\ud800"}\n')
    assert "surrogate" in refusal(data=str(path))
    array = tmp_path / "c.json"
    array.write_bytes(b'[{"text": "a"},\n{"text": "\xc3\xa9 \xff"}]')
    assert f"{array}, line 2: not UTF-8 at byte 29" in refusal(data=str(array))


def test_wrong_fields_are_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "c.jsonl", [{"q": "1", "a": "2"}, {"q": 5, "a": None}])
    message = refusal(data=path)
    assert "which field holds the text?" in message
    assert "q, a" in message
    message = refusal(data=path, text_field="question")
    assert "line 1" in message
    assert "'question'" in message
    assert "q, a" in message
    assert "line 2: field 'q' holds a number" in refusal(data=path, text_field="q")
    assert "line 2: field 'a' holds nothing" in refusal(data=path, text_field="a")
    assert "'answer' does not exist; the fields are q, a" in refusal(data=path, template="{answer}")
    assert "no conversation" in refusal(data=path, chat="q")
    assert "no list of token ids" in refusal(data=path, token_ids="q")


def test_unusable_records_are_kept_where_asked(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "c.jsonl", [{"q": "1"}, {"q": 5}, {"q": "3"}])
    found = list(read_corpus(CorpusSpec(data=(path,), text_field="q", on_error="skip")))
    assert [d.text for d in found] == ["1", None, "3"]
    assert "line 2" in (found[1].error or "")


def test_wrong_requests(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "c.jsonl", [{"text": "a"}])
    assert "no such file" in refusal(data=str(tmp_path / "none.jsonl"))
    assert "no such file" in refusal(data=str(tmp_path / "*.parquet"))
    assert "is a folder" in refusal(data=str(tmp_path))
    assert "exclude each other" in refusal(data=path, text_field="a", template="{a}")
    assert "names no field" in refusal(data=path, template="a")
    assert "write fields as" in refusal(data=path, template="{}")
    assert "template" in refusal(data=path, template="{a")
    assert "--on-long window" in refusal(data=path, stride=3)
    (tmp_path / "c.bin").write_text("a")
    assert "does not tell its format" in refusal(data=str(tmp_path / "c.bin"))
    assert texts(data=str(tmp_path / "c.bin"), format="text") == ["a"]
    (tmp_path / "t.txt").write_text("a")
    assert "plain text has no fields" in refusal(data=str(tmp_path / "t.txt"), template="{a}")


def test_damaged_files(tmp_path: Path) -> None:
    content = ("".join(f'{{"text": "{n}"}}\n' for n in range(5000))).encode()
    cut = tmp_path / "c.jsonl.gz"
    cut.write_bytes(gzip.compress(content)[:-40])
    assert str(cut) in refusal(data=str(cut))
    cut = tmp_path / "c.jsonl.zst"
    cut.write_bytes(zstandard.compress(content)[:-40])
    assert str(cut) in refusal(data=str(cut))
    bad = tmp_path / "c.parquet"
    bad.write_bytes(b"no parquet at all")
    assert "Parquet" in refusal(data=str(bad))
    ragged = tmp_path / "c.csv"
    ragged.write_text('a,b\n1,"x\ny"\n1,2,3\n')
    assert "line 4: 3 cells" in refusal(data=str(ragged), text_field="b")
    ragged.write_text("a,a\n1,2\n")
    assert "same name" in refusal(data=str(ragged))


def test_csv_cells_keep_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("text,a,b,c,d\n7,7,007,1.5,\n8,-1,x,1.50,y\n")
    found = list(read_corpus(CorpusSpec(data=(str(path),))))
    assert [d.text for d in found] == ["7", "8"]
    assert found[0].fields == {"a": 7, "b": "007", "c": 1.5, "d": None}
    assert found[1].fields == {"a": -1, "b": "x", "c": "1.50", "d": "y"}


def test_data_sets_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in refusal(data="hf:some/set")
    calls = []

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> Any:
        calls.append((name, config, split, streaming))
        if name == "bad":
            raise ValueError("no such set\nmore")
        return iter([{"text": "a", "n": 1}, {"text": "b", "n": 2}])

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert texts(data="hf:org/set:main:test") == ["a", "b"]
    assert texts(data="hf:set") == ["a", "b"]
    assert calls == [("org/set", "main", "test", True), ("set", None, "train", True)]
    assert "no such set" in refusal(data="hf:bad")
