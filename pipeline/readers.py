"""Records from files of every format the corpus may have, one at a time.

Each reader yields ``Record`` values lazily; nothing is held but the current record (or the current
block). Bytes that are not UTF-8, broken JSON, ragged CSV and cut-off archives raise
``RequestError`` naming file and line.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from depthscope.storage.errors import RequestError

from .json_array import array_items
from .text_stream import COMPRESSIONS, read_blocks, read_lines

Format = Literal["jsonl", "json", "csv", "tsv", "parquet", "text"]
TextSplit = Literal["line", "blank", "window"]

#: Characters of plain text taken as one text when a file is cut into windows.
WINDOW_BLOCK = 1 << 20

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}


@dataclass(frozen=True)
class Record:
    """One record of a source: its fields, and where it stands.

    ``line`` counts from 1: lines where the source has lines, records otherwise (``unit`` says).
    """

    source: str
    line: int
    unit: Literal["line", "record"]
    fields: Mapping[str, Any]

    @property
    def where(self) -> str:
        """Source and line, as errors name them."""
        return f"{self.source}, {self.unit} {self.line}"


def read_file(path: str, file_format: Format | None, split: TextSplit) -> Iterator[Record]:
    """The records of one file, its format told by its name unless given."""
    chosen = file_format or format_of(path)
    try:
        if chosen == "parquet":
            yield from _read_parquet(path)
        elif chosen == "text":
            yield from _TEXT_SPLITS[split](path)
        else:
            yield from _READERS[chosen](path)
    except OSError as error:
        # pyarrow's own failures, such as a cut-off archive, carry no errno.
        reason = error.strerror or str(error).splitlines()[0]
        raise RequestError(f"{path}: cannot be read ({reason})") from error


def format_of(path: str) -> Format:
    """The format a file's name tells, compression suffixes set aside."""
    name = Path(path)
    if name.suffix.lower() in COMPRESSIONS:
        name = name.with_suffix("")
    try:
        return _FORMATS[name.suffix.lower()]
    except KeyError:
        known = " ".join(_FORMATS)
        raise RequestError(
            f"{path}: its name does not tell its format; give --format, or one of {known} "
            "(and .gz or .zst after it)"
        ) from None


def _read_jsonl(path: str) -> Iterator[Record]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise RequestError(f"{path}, line {number}: broken JSON: {error}") from None
        yield Record(path, number, "line", _object(value, f"{path}, line {number}"))


def _read_json(path: str) -> Iterator[Record]:
    pieces = read_blocks(path)
    first = next((text for text in pieces if text.strip()), "")
    if not first.lstrip().startswith("["):
        pieces.close()
        yield from _read_jsonl(path)
        return
    for number, value in enumerate(array_items(path, first.lstrip()[1:], pieces), 1):
        yield Record(path, number, "record", _object(value, f"{path}, record {number}"))


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{where}: not a JSON object with fields, but {json.dumps(value)[:40]}")
    return value


def _read_csv(path: str, delimiter: str = ",") -> Iterator[Record]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    rows = csv.reader(
        (f"{line}\n" for _, line in read_lines(path)), delimiter=delimiter, strict=True
    )
    line = 1
    try:
        names = next(rows, None)
        if names is None:
            return
        if len(set(names)) != len(names):
            raise RequestError(f"{path}, line 1: two columns have the same name")
        while True:
            line = rows.line_num + 1
            cells = next(rows, None)
            if cells is None:
                return
            if not cells:
                continue
            if len(cells) != len(names):
                raise RequestError(
                    f"{path}, line {line}: {len(cells)} cells where the header has {len(names)}"
                )
            yield Record(path, line, "line", dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise RequestError(f"{path}, line {line}: broken CSV: {error}") from None


def _read_tsv(path: str) -> Iterator[Record]:
    return _read_csv(path, "\t")


def typed_cell(cell: str) -> str | int | float | None:
    """A CSV cell as a number if it is written just as one (``007`` stays text); null if empty."""
    if not cell:
        return None
    for kind in (int, float):
        try:
            if str(value := kind(cell)) == cell:
                return value
        except ValueError:
            continue
    return cell


def _read_parquet(path: str) -> Iterator[Record]:
    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=256):
                for fields in batch.to_pylist():
                    number += 1
                    yield Record(path, number, "record", fields)
    except pa.ArrowInvalid as error:
        raise RequestError(f"{path}: not readable as Parquet ({str(error)[:80]})") from None


def _read_text_lines(path: str) -> Iterator[Record]:
    for number, line in read_lines(path):
        if line.strip():
            yield Record(path, number, "line", {"text": line})


def _read_text_paragraphs(path: str) -> Iterator[Record]:
    held: list[str] = []
    start = 1
    for number, line in read_lines(path):
        if line.strip():
            if not held:
                start = number
            held.append(line)
        elif held:
            yield Record(path, start, "line", {"text": "\n".join(held)})
            held = []
    if held:
        yield Record(path, start, "line", {"text": "\n".join(held)})


def _read_text_blocks(path: str) -> Iterator[Record]:
    held: list[str] = []
    start, size = 1, 0
    for number, line in read_lines(path):
        held.append(line)
        size += len(line) + 1
        if size >= WINDOW_BLOCK:
            yield Record(path, start, "line", {"text": "\n".join(held) + "\n"})
            held, start, size = [], number + 1, 0
    if any(line.strip() for line in held):
        yield Record(path, start, "line", {"text": "\n".join(held)})


_READERS: dict[str, Callable[[str], Iterator[Record]]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "tsv": _read_tsv,
}
_TEXT_SPLITS: dict[str, Callable[[str], Iterator[Record]]] = {
    "line": _read_text_lines,
    "blank": _read_text_paragraphs,
    "window": _read_text_blocks,
}
