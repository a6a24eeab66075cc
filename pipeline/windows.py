"""What becomes of a text that is longer than the model can take."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from depthscope.storage.errors import RequestError

from .corpus import CorpusSpec
from .encode import EncodedText, IntArray


def cut(
    spec: CorpusSpec,
    encoded: EncodedText,
    where: str,
    limit: int | None,
    decode: Callable[[IntArray], str | None],
) -> list[EncodedText]:
    """The documents one text becomes: itself, its beginning, or its windows.

    Every document keeps the special tokens the tokenizer put around the text, and has as its text
    exactly what its tokens cover. The last window is shorter where the text does not fill it.

    Raises
    ------
    RequestError
        Where the text has no tokens of its own, or is too long and ``spec.long_text`` is refuse.
    """
    if encoded.content <= 0:
        raise RequestError(
            f"{where}: the document is empty; remove it, or keep it without tokens "
            "with --on-error skip"
        )
    if limit is None or len(encoded.ids) <= limit:
        return [encoded]
    if spec.long_text == "refuse":
        raise RequestError(
            f"{where}: {len(encoded.ids)} tokens where the limit is {limit}; "
            "give --on-long truncate or --on-long window"
        )
    room = limit - encoded.before - encoded.after
    if room < 1:
        raise RequestError(
            f"--max-tokens {limit} leaves no room beside {limit - room} special tokens"
        )
    if spec.long_text == "truncate":
        return [_part(encoded, 0, room, decode)]
    stride = spec.stride or room
    if stride > room:
        raise RequestError(
            f"--stride {stride} would leave out tokens between windows of {room}; give less"
        )
    last = max(0, -(-(encoded.content - room) // stride))
    return [
        _part(encoded, n * stride, min(n * stride + room, encoded.content), decode)
        for n in range(last + 1)
    ]


def _part(
    encoded: EncodedText, first: int, last: int, decode: Callable[[IntArray], str | None]
) -> EncodedText:
    """The document of content tokens [first, last)."""
    before, total = encoded.before, len(encoded.ids)
    inside = np.arange(before + first, before + last)
    chosen = np.concatenate(
        [np.arange(before), inside, np.arange(total - encoded.after, total)]
    ).astype(np.int64)
    start, end = encoded.char_start[chosen], encoded.char_end[chosen]
    offset, text = 0, encoded.text
    known = bool((encoded.char_start[inside] >= 0).all())
    if known and text is not None:
        offset = _text_start(encoded, int(inside[0])) if first else 0
        stop = int(encoded.char_end[inside].max())
        text = text[offset:] if last == encoded.content else text[offset:stop]
        start, end = (np.where(a < 0, a, a - offset).astype(np.int32) for a in (start, end))
    elif text is not None:
        text = decode(encoded.ids[inside])
    roles = None if encoded.roles is None else [encoded.roles[i] for i in chosen]
    return EncodedText(encoded.ids[chosen], start, end, text, roles, before, encoded.after, offset)


def _text_start(encoded: EncodedText, token: int) -> int:
    """Where a window's text begins: with the space before its first token, if there is one."""
    start = int(encoded.char_start[token])
    previous = int(encoded.char_end[token - 1]) if token else 0
    return min(start, previous) if previous >= 0 else start
