"""From a record to a text: the field, template, conversation or token ids that make a document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from depthscope.storage.errors import RequestError

from .readers import Format, Record, typed_cell
from .template import Template

if TYPE_CHECKING:
    from .corpus import CorpusSpec


@dataclass(frozen=True)
class RawDocument:
    """One text before tokenising: exactly one of text, token ids and messages, or an error.

    ``fields`` holds what else the record had; ``where`` names source and line in errors;
    ``spans_lines`` says that ``line`` is only the first of several (plain text).
    """

    source: str
    line: int
    where: str
    text: str | None = None
    token_ids: list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    spans_lines: bool = False
    error: str | None = None


class DocumentMaker:
    """Picks the text, the conversation or the token ids out of one source's records.

    Parameters
    ----------
    file_format
        The source's format; None for a data set by name.
    """

    def __init__(self, spec: CorpusSpec, file_format: Format | None) -> None:
        self._spec = spec
        self._plain = file_format == "text"
        self._cells = file_format in ("csv", "tsv")
        self._template = None if spec.template is None else Template(spec.template)
        self._text_field = spec.text_field
        if self._plain and any((spec.text_field, spec.template, spec.chat, spec.token_ids)):
            raise RequestError("plain text has no fields; leave out --text-field and the like")

    def make(self, record: Record) -> RawDocument:
        """One record's document; with ``on_error`` skip, one that carries the error instead."""
        try:
            document = self._document(record)
        except RequestError as error:
            if self._spec.on_error == "stop":
                raise
            place = (record.source, record.line, record.where)
            document = RawDocument(*place, fields=record.fields, error=str(error))
        if self._cells:
            typed = {name: typed_cell(cell) for name, cell in document.fields.items()}
            document = replace(document, fields=typed)
        return document

    def _document(self, record: Record) -> RawDocument:
        spec, place = self._spec, (record.source, record.line, record.where)
        if self._template is not None:
            text = self._template.fill(record.fields, record.where)
            return RawDocument(*place, text=_sound(text, record), fields=record.fields)
        name = spec.chat or spec.token_ids or self._text_field
        if name is None:
            name = self._text_field = _default_field(record)
        if name not in record.fields:
            raise RequestError(
                f"{record.where}: no field {name!r}; the fields are {_names(record)}"
            )
        value = record.fields[name]
        others = {key: item for key, item in record.fields.items() if key != name}
        if spec.chat is not None:
            return RawDocument(*place, messages=_messages(value, name, record), fields=others)
        if spec.token_ids is not None:
            return RawDocument(*place, token_ids=_ids(value, name, record), fields=others)
        if not isinstance(value, str):
            raise RequestError(
                f"{record.where}: field {name!r} holds {_described(value)}, not text; "
                "name another with --text-field, or use --template"
            )
        return RawDocument(
            *place, text=_sound(value, record), fields=others, spans_lines=self._plain
        )


def _default_field(record: Record) -> str:
    if "text" in record.fields:
        return "text"
    strings = [name for name, value in record.fields.items() if isinstance(value, str)]
    if len(strings) == 1:
        return strings[0]
    raise RequestError(
        f"{record.where}: which field holds the text? The fields are {_names(record)}; "
        "name one with --text-field, or combine several with --template"
    )


def _messages(value: Any, name: str, record: Record) -> list[dict[str, Any]]:
    good = isinstance(value, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in value
    )
    if not good:
        raise RequestError(
            f"{record.where}: field {name!r} is no conversation; it must be a list of "
            '{"role": …, "content": …}'
        )
    return list(value)


def _ids(value: Any, name: str, record: Record) -> list[int]:
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise RequestError(f"{record.where}: field {name!r} is no list of token ids")
    return value


def _sound(text: str, record: Record) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{record.where}: character {error.start} of the text is half a surrogate pair, "
            "which is no text; mend the record"
        ) from None
    return text


def _names(record: Record) -> str:
    return ", ".join(record.fields) or "none"


def _described(value: Any) -> str:
    if value is None:
        return "nothing"
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), "an object")
