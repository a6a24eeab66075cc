"""The items of one JSON array of any size, decoded one at a time.

Text is taken in doubling amounts while an item is incomplete, so memory is a few times the largest
item and the cost is linear.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from depthscope.storage.errors import RequestError

_SPACE = " \t\r\n"


def array_items(path: str, text: str, pieces: Iterator[str]) -> Iterator[Any]:
    """Items of the array whose text, after its ``[``, is ``text`` and then ``pieces``.

    Raises
    ------
    RequestError
        Broken JSON, naming the item by its number from 1.
    """
    window = _Window(text, pieces)
    count = 0
    while True:
        mark = window.next_mark()
        if mark == "":
            raise RequestError(f"{path}, record {count + 1}: the array is not closed")
        if mark == "]":
            break
        if count:
            if mark != ",":
                raise RequestError(f"{path}, record {count + 1}: broken JSON: expected ',' or ']'")
            window.at += 1
        try:
            value = window.item()
        except (json.JSONDecodeError, RecursionError) as error:
            reason = getattr(error, "msg", str(error))
            raise RequestError(f"{path}, record {count + 1}: broken JSON: {reason}") from None
        count += 1
        yield value
    window.at += 1
    if window.next_mark():
        raise RequestError(f"{path}: more follows the end of the array")


class _Window:
    """The part of the text that is not yet decoded; ``at`` is the next character of it."""

    def __init__(self, text: str, pieces: Iterator[str]) -> None:
        self.at = 0
        self._text = text
        self._pieces = pieces
        self._decoder = json.JSONDecoder()

    def next_mark(self) -> str:
        """The next character that is no space, not taken; empty at the end."""
        while True:
            while self.at < len(self._text) and self._text[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self._text):
                return self._text[self.at]
            if not self._grow():
                return ""

    def item(self) -> Any:
        """Decode one value, reading on while it is incomplete."""
        while True:
            self.next_mark()
            try:
                value, self.at = self._decoder.raw_decode(self._text, self.at)
            except json.JSONDecodeError as error:
                if not self._incomplete(error) or not self._grow():
                    raise
            else:
                return value

    def _incomplete(self, error: json.JSONDecodeError) -> bool:
        # A word or escape cut in two (such as "tru") fails at its start, a few characters early.
        unclosed = error.msg.startswith("Unterminated string")
        return unclosed or error.pos >= len(self._text.rstrip()) - 16

    def _grow(self) -> bool:
        """Drop what is decoded and read at least as much again as is held."""
        held = [self._text[self.at :]]
        least, size = len(held[0]), 0
        for piece in self._pieces:
            held.append(piece)
            size += len(piece)
            if size and size >= least:
                break
        self._text, self.at = "".join(held), 0
        return size > 0
