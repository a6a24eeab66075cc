"""One batch of texts through a Hugging Face tokenizer, with offsets, roles and token strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

from .chat import ChatRenderer, RenderedChat
from .corpus import CorpusSpec
from .raw_documents import RawDocument

IntArray = NDArray[np.int32]


@dataclass(frozen=True)
class EncodedText:
    """A tokenised text; arrays have one entry per token.

    ``char_start`` and ``char_end`` are offsets in ``text`` in characters, -1 where unknown;
    ``before`` and ``after`` count the special tokens the tokenizer put around the content;
    ``offset`` is where ``text`` begins in the text it was cut from.
    """

    ids: IntArray
    char_start: IntArray
    char_end: IntArray
    text: str | None
    roles: list[str | None] | None = None
    before: int = 0
    after: int = 0
    offset: int = 0

    @property
    def content(self) -> int:
        """Number of tokens that are not special tokens around the text."""
        return len(self.ids) - self.before - self.after

    @classmethod
    def empty(cls, text: str | None) -> EncodedText:
        """A text without tokens."""
        none = np.empty(0, dtype=np.int32)
        return cls(none, none, none, text)


class TextEncoder:
    """Tokenises texts, conversations and token ids with one tokenizer (or none, for token ids)."""

    def __init__(self, spec: CorpusSpec, tokenizer: Any, vocabulary: int | None = None) -> None:
        if tokenizer is None and spec.token_ids is None:
            raise RequestError("the model has no tokenizer; give a corpus of --token-ids")
        self._tokenizer = tokenizer
        self._fast = bool(getattr(tokenizer, "is_fast", False))
        self._add_special = spec.special_tokens and spec.chat is None
        self._chat = ChatRenderer(tokenizer) if spec.chat is not None else None
        self._vocabulary = vocabulary or (None if tokenizer is None else len(tokenizer))
        self._special = np.array(sorted(_special_ids(tokenizer)), dtype=np.int32)
        self._pieces: dict[int, str] = {}

    def encode(self, batch: Sequence[RawDocument]) -> list[EncodedText | RequestError]:
        """Each document's tokens, or the error that makes it unusable."""
        results: list[EncodedText | RequestError | None] = [None] * len(batch)
        texts: list[tuple[int, str, RenderedChat | None]] = []
        for place, raw in enumerate(batch):
            try:
                if raw.error is not None:
                    raise RequestError(raw.error)
                if raw.token_ids is not None:
                    results[place] = self._from_ids(raw.token_ids, raw.where)
                elif raw.messages is not None and self._chat is not None:
                    chat = self._chat.render(raw.messages, raw.where)
                    texts.append((place, chat.text, chat))
                else:
                    texts.append((place, raw.text or "", None))
            except RequestError as error:
                results[place] = error
        encoded = self._from_texts([text for _, text, _ in texts])
        for (place, _, rendered), tokens in zip(texts, encoded, strict=True):
            results[place] = tokens if rendered is None else self._with_roles(tokens, rendered)
        return [result for result in results if result is not None]

    def pieces(self, ids: IntArray) -> list[str | None]:
        """The text of each token alone; None without a tokenizer."""
        if self._tokenizer is None:
            return [None] * len(ids)
        known = self._pieces
        numbers = ids.tolist()
        for number in set(numbers):
            if number not in known:
                known[number] = self._piece(number)
        return [known[number] for number in numbers]

    def special(self, ids: IntArray) -> NDArray[np.bool_]:
        """Which tokens are special tokens of the tokenizer."""
        return np.isin(ids, self._special)

    def decode(self, ids: IntArray) -> str | None:
        """The text of several tokens; None without a tokenizer."""
        if self._tokenizer is None:
            return None
        return _decoded(self._tokenizer, ids.tolist())

    def _from_texts(self, texts: list[str]) -> list[EncodedText]:
        if not texts:
            return []
        # Lengths are judged later, by the model's context and not by the tokenizer's.
        out = self._tokenizer(
            texts,
            add_special_tokens=self._add_special,
            return_special_tokens_mask=True,
            return_offsets_mapping=self._fast,
            return_attention_mask=False,
            return_token_type_ids=False,
            padding=False,
            truncation=False,
            verbose=False,
        )
        offsets = out["offset_mapping"] if self._fast else [None] * len(texts)
        parts = zip(texts, out["input_ids"], out["special_tokens_mask"], offsets, strict=True)
        return [self._encoded(*part) for part in parts]

    def _encoded(
        self, text: str, ids: list[int], mask: list[int], offsets: list[tuple[int, int]] | None
    ) -> EncodedText:
        added = np.array(mask, dtype=bool) & self._add_special
        before, after = _run(added), _run(added[::-1])
        if before == len(added):
            after = 0
        if offsets is None:
            start = end = np.full(len(ids), -1, dtype=np.int32)
        else:
            pairs = np.array(offsets, dtype=np.int32).reshape(-1, 2)
            # The tokenizer gives its own additions the offsets 0 to 0.
            pairs[added & (pairs[:, 1] == 0)] = -1
            start, end = pairs[:, 0].copy(), pairs[:, 1].copy()
        return EncodedText(np.array(ids, np.int32), start, end, text, None, before, after)

    def _with_roles(self, tokens: EncodedText, chat: RenderedChat) -> EncodedText:
        if self._fast:
            return replace(tokens, roles=chat.roles_at(tokens.char_start))
        # Without offsets: a message's tokens end where the text up to its end has as many.
        heads = [chat.text[:end] for end in chat.ends]
        ends = [len(head.ids) for head in self._from_texts(heads)]
        places = np.arange(len(tokens.ids), dtype=np.int32)
        return replace(
            tokens, roles=RenderedChat(chat.text, tuple(ends), chat.roles).roles_at(places)
        )

    def _from_ids(self, ids: list[int], where: str) -> EncodedText:
        limit = self._vocabulary or 2**31
        for number in ids:
            if not 0 <= number < limit:
                raise RequestError(
                    f"{where}: token id {number} is outside the vocabulary of {limit} tokens"
                )
        array = np.array(ids, dtype=np.int32)
        unknown = np.full(len(ids), -1, dtype=np.int32)
        return EncodedText(array, unknown, unknown, self.decode(array))

    def _piece(self, number: int) -> str:
        text = _decoded(self._tokenizer, [number])
        raw = self._tokenizer.convert_ids_to_tokens(number)
        # SentencePiece decoders drop the space a text begins with, which here is the token's own.
        spaces = len(raw) - len(raw.lstrip("▁")) if isinstance(raw, str) else 0
        return " " * spaces + text.lstrip(" ") if spaces else text


def _special_ids(tokenizer: Any) -> set[int]:
    if tokenizer is None:
        return set()
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return set(tokenizer.all_special_ids) | {n for n, token in added.items() if token.special}


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _run(flags: NDArray[np.bool_]) -> int:
    """How many flags are set in a row from the start."""
    return len(flags) if flags.all() else int(np.argmin(flags))
