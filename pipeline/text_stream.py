"""The text of a file, plain or compressed, decoded piece by piece.

A cut-off archive raises ``OSError``; bytes that are not UTF-8 raise ``RequestError`` with the line
and the byte (of the decompressed text).
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from depthscope.storage.errors import RequestError

#: Compressions by the last suffix of a file's name.
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_READ_BYTES = 1 << 20


def open_bytes(path: str) -> Any:
    """A buffered byte stream of the file, decompressed if its name says so."""
    compression = COMPRESSIONS.get(Path(path).suffix.lower())
    if compression is None:
        return Path(path).open("rb", buffering=_READ_BYTES)
    return io.BufferedReader(pa.input_stream(path, compression=compression), _READ_BYTES)


def _not_utf8(path: str, line: int, byte: int, reason: str) -> RequestError:
    return RequestError(
        f"{path}, line {line}: not UTF-8 at byte {byte} ({reason}); "
        "convert the file, for example with iconv"
    )


def read_lines(path: str) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends, decoded one by one so that errors know their place."""
    offset = 0
    with open_bytes(path) as stream:
        for number, line in enumerate(stream, 1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number, offset + error.start, error.reason) from None
            offset += len(line)
            if number == 1:
                text = text.removeprefix("\ufeff")
            yield number, text.removesuffix("\n").removesuffix("\r")


def read_blocks(path: str) -> Generator[str]:
    """The file's text in blocks, for formats whose lines may be as long as the file."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    offset, line = 0, 1
    with open_bytes(path) as stream:
        while True:
            block = stream.read(_READ_BYTES)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                held = len(error.object) - len(block)
                line += error.object[: error.start].count(b"\n")
                raise _not_utf8(path, line, offset - held + error.start, error.reason) from None
            offset += len(block)
            line += text.count("\n")
            yield text
            if not block:
                return
