"""Templates that turn a record's fields into text: ``{question}\\n{answer}``.

``{name}`` is a field, ``{name.inner}`` and ``{name[0]}`` reach into nested values, ``{{`` and
``}}`` are braces. Strings stand as they are, null is empty, everything else is written as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from string import Formatter
from typing import Any

from depthscope.storage.errors import RequestError

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
_STEP = re.compile(r"\.([^.\[\]]+)|\[([^\]]+)\]")


def unescape(text: str) -> str:
    r"""Replace ``\n``, ``\t``, ``\r`` and ``\\`` as typed on a command line; others stay."""
    return re.sub(r"\\([ntr\\])", lambda match: _ESCAPES[match[1]], text)


class Template:
    """A parsed template.

    Raises
    ------
    RequestError
        Where the braces do not balance, name nothing, or carry a format specification.
    """

    def __init__(self, template: str) -> None:
        try:
            parts = list(Formatter().parse(template))
        except ValueError as error:
            raise RequestError(f"template {template!r}: {error}") from None
        self._parts: list[tuple[str, str | None]] = []
        for literal, name, specification, conversion in parts:
            if name == "" or specification or conversion:
                raise RequestError(
                    f"template {template!r}: write fields as {{name}}, {{name.inner}}, {{name[0]}}"
                )
            self._parts.append((literal, name))
        if all(name is None for _, name in self._parts):
            raise RequestError(f"template {template!r} names no field; write fields as {{name}}")

    def fill(self, record: Mapping[str, Any], where: str) -> str:
        """The record's text; ``where`` names the record in errors."""
        return "".join(
            literal + ("" if name is None else _written(_look_up(record, name, where)))
            for literal, name in self._parts
        )


def _look_up(record: Mapping[str, Any], name: str, where: str) -> Any:
    if name in record:
        return record[name]
    head = re.split(r"[.\[]", name, maxsplit=1)[0]
    if head not in record:
        raise RequestError(
            f"{where}: the template's field {head!r} does not exist; "
            f"the fields are {', '.join(record) or 'none'}"
        )
    value = record[head]
    for match in _STEP.finditer(name[len(head) :]):
        key = match[1] or match[2]
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, TypeError, ValueError):
            raise RequestError(f"{where}: the template's field {name!r} has no {key!r}") from None
    return value


def _written(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
