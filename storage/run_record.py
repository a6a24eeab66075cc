"""run.json: what a store holds, and the identity that decides whether a run may continue it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from .atomic import create_json, encode_json
from .errors import RequestError
from .layout import FORMAT, StorePaths


@dataclass(frozen=True)
class GroupLayout:
    """How one group of arrays is cut.

    Attributes
    ----------
    rows
        Stored rows.
    rows_per_shard, rows_per_chunk
        Rows of a shard (one file) and of a chunk inside it.
    """

    rows: int
    rows_per_shard: int
    rows_per_chunk: int


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json.

    Attributes
    ----------
    identity_fields
        Everything that decides the numbers, flat, in plain values.
    specification
        The resolved command, as given.
    model, corpus
        What was run, over what.
    rows, documents
        Rows and documents of the corpus.
    task_rows, tasks
        Corpus rows of a task, and the number of tasks.
    rows_run_twice
        Rows that more than one task runs, because a document or a shard crosses a border.
    points
        The stored points; empty where none is stored.
    groups
        ``activations``, ``statistics`` and ``lens``, as far as the store has them.
    software
        Versions of the libraries that laid the store out.
    created
        ISO 8601 time, UTC.
    """

    identity_fields: Mapping[str, Any]
    specification: Mapping[str, Any]
    model: Mapping[str, Any]
    corpus: Mapping[str, Any]
    rows: int
    documents: int
    task_rows: int
    tasks: int
    rows_run_twice: int
    points: tuple[int, ...]
    groups: Mapping[str, GroupLayout]
    software: Mapping[str, str]
    created: str
    format: int = field(default=FORMAT)

    @property
    def identity(self) -> str:
        """Digest of the identity fields."""
        return blake3(encode_json(dict(self.identity_fields))).hexdigest()

    @property
    def identities(self) -> tuple[str, ...]:
        """Its identity, and those of the larger stores that it was trimmed from."""
        return (self.identity, *self.specification.get("trimmed_from", ()))

    def save(self, root: Path) -> bool:
        """Create run.json; False when another driver has created it meanwhile."""
        return create_json(StorePaths(root).run, {**asdict(self), "identity": self.identity})

    @classmethod
    def load(cls, root: Path) -> RunRecord:
        """Read run.json.

        Raises
        ------
        RequestError
            There is no store, or one that a newer depthscope has written.
        """
        path = StorePaths(root).run
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RequestError(f"{root} is no store: it has no run.json") from None
        except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
            raise RequestError(f"{path} cannot be read: {error}") from error
        version = content.get("format")
        if version != FORMAT:
            raise RequestError(
                f"{root} has store format {version}, this depthscope reads {FORMAT}: "
                "update depthscope to open it"
            )
        content.pop("identity", None)
        content["points"] = tuple(content["points"])
        content["groups"] = {k: GroupLayout(**v) for k, v in content["groups"].items()}
        return cls(**content)


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Say which identity fields differ, one ``field: stored … wanted …`` each."""
    names = sorted(set(stored) | set(wanted))
    return [
        f"{name} (store: {_short(stored.get(name))}, asked: {_short(wanted.get(name))})"
        for name in names
        if stored.get(name) != wanted.get(name)
    ]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
