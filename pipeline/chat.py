"""Conversations through a tokenizer's chat template, with the span of text each message owns.

A message's span is found by rendering the conversation up to it: where the longer rendering begins
to differ from the shorter, the next message begins. Templates that change or refuse shorter
conversations are held to the place where each message's own content stands in the whole. What the
template puts ahead of the first message (a default system prompt, a begin token) has the role
``system``; headers and ends of turns belong to their message. Cost grows with the square of a
conversation's number of messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

Message = dict[str, Any]
_FIRST, _SECOND, _THIRD = "⟦one⟧", "⟦two⟧", "⟦three⟧"


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as text; span i ends before character ``ends[i]`` and has ``roles[i]``."""

    text: str
    ends: tuple[int, ...]
    roles: tuple[str, ...]

    def roles_at(self, characters: NDArray[np.int32]) -> list[str | None]:
        """The role that owns each character offset; None for -1."""
        spans = np.searchsorted(np.array(self.ends), characters, side="right")
        spans = np.minimum(spans, len(self.roles) - 1)
        return [
            None if at < 0 else self.roles[span]
            for at, span in zip(characters.tolist(), spans.tolist(), strict=True)
        ]


class ChatRenderer:
    """Renders conversations with one tokenizer.

    Raises
    ------
    RequestError
        Where the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer is None or not getattr(tokenizer, "chat_template", None):
            raise RequestError(
                "--chat: the model's tokenizer has no chat template; use --text-field or --template"
            )
        self._tokenizer = tokenizer
        self._headers: dict[str, str | None] = {}

    def render(self, messages: Sequence[Message], where: str) -> RenderedChat:
        """The conversation as the model would see it; ``where`` names it in errors."""
        try:
            text = self._text(messages)
        except Exception as error:
            # Templates raise whatever they like on conversations they refuse.
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RequestError(
                f"{where}: the chat template refuses the conversation ({reason})"
            ) from error
        if not messages:
            return RenderedChat(text, (len(text),), ("system",))
        preamble = self._preamble(messages, text)
        ends = [preamble, *self._borders(messages, text, preamble), len(text)]
        return RenderedChat(text, tuple(ends), ("system", *(m["role"] for m in messages)))

    def _borders(self, messages: Sequence[Message], text: str, start: int) -> list[int]:
        """Where each message but the last ends."""
        borders = []
        for count in range(1, len(messages)):
            shorter = self._shorter(messages[:count])
            if shorter is not None and len(shorter) >= start and text.startswith(shorter):
                start = len(shorter)
            else:
                own_end = _find(text, messages[count - 1], start, missing=(start, start))[1]
                other = _find(text, messages[count], own_end, missing=(len(text), len(text)))[0]
                shared = own_end if shorter is None else _shared_length(shorter, text)
                start = min(max(shared, own_end), other)
            borders.append(start)
        return borders

    def _shorter(self, messages: Sequence[Message]) -> str | None:
        try:
            return self._text(messages)
        except Exception:
            # A template may refuse a conversation that ends here; the contents then decide.
            return None

    def _preamble(self, messages: Sequence[Message], text: str) -> int:
        """Length of what the template puts ahead of the first message."""
        role = messages[0]["role"]
        if role not in self._headers:
            self._headers[role] = self._header(role)
        header = self._headers[role]
        if not header:
            return 0
        return max(0, text.find(header + _content(messages[0])))

    def _header(self, role: str) -> str | None:
        """What the template writes between an assistant's turn and a message of this role."""
        turns = [
            {"role": role, "content": _FIRST},
            {"role": "assistant", "content": _SECOND},
            {"role": role, "content": _THIRD},
        ]
        try:
            longer = self._text(turns)
            start = _shared_length(self._text(turns[:2]), longer)
        except Exception:
            # No such conversation with this template: everything ahead is the first message's.
            return None
        end = longer.find(_THIRD)
        return longer[start:end] if end >= start else None

    def _text(self, messages: Sequence[Message]) -> str:
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False))


def _content(message: Message) -> str:
    # Templates often strip what they insert.
    return message["content"].strip() if isinstance(message["content"], str) else ""


def _find(text: str, message: Message, start: int, missing: tuple[int, int]) -> tuple[int, int]:
    """Where a message's content stands in the text from ``start``; ``missing`` if it does not."""
    content = _content(message)
    found = text.find(content, start) if content else -1
    return missing if found < 0 else (found, found + len(content))


def _shared_length(first: str, second: str) -> int:
    """Characters that two texts have in common from their start."""
    if second.startswith(first):
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))
