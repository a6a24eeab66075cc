"""The plan of one intervention sweep, and its commits.

`EffectsRecord` is to an intervention sweep what run.json is to an extraction. The arrays lie in
``effects/NAME.zarr`` (see effects_arrays.py), one shard per task; commits lie in
``commits/effects/NAME``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from .atomic import create_json, encode_json
from .commits import CommitLog
from .errors import RequestError
from .layout import StorePaths
from .tasks import Task


@dataclass(frozen=True)
class EffectsRecord:
    """What an intervention sweep does, over which documents, cut into which tasks.

    Attributes
    ----------
    name
        Of the sweep: ``effects/NAME.zarr``.
    identity_fields
        Everything that decides the numbers.
    request
        The resolved command.
    layers
        L.
    scopes, kinds, parts
        Labels of the first three axes.
    documents
        The store's document numbers, ascending.
    split_positions
        For every document, the 0-based position of each split; -1 where there is none.
    sources
        Layers, first layers of a program, or points, that are changed; the axis has them all.
    positions
        Of an erasure or of gradients: tokens of the longest document.
    documents_per_task, sources_per_task
        A task is so many documents and so many of the layers.
    """

    name: str
    identity_fields: Mapping[str, Any]
    request: Mapping[str, Any]
    layers: int
    scopes: tuple[str, ...]
    kinds: tuple[str, ...]
    parts: tuple[str, ...]
    documents: tuple[int, ...]
    split_positions: tuple[tuple[int, ...], ...]
    sources: tuple[int, ...]
    documents_per_task: int
    sources_per_task: int
    positions: int = 0
    interventions: tuple[Mapping[str, Any], ...] = ()
    created: str = field(default="")

    @property
    def identity(self) -> str:
        """Digest of the identity fields."""
        return blake3(encode_json(dict(self.identity_fields))).hexdigest()

    @property
    def splits(self) -> int:
        """Splits of a document, at most."""
        return max((len(row) for row in self.split_positions), default=0)

    @property
    def erases(self) -> bool:
        """Whether the stream is erased at points and positions; ``scopes`` then names the cases."""
        return bool(self.identity_fields["what"] == "erase")

    @property
    def is_gradients(self) -> bool:
        """Whether gradients are integrated; ``parts`` are then what is attributed."""
        return bool(self.identity_fields["what"] == "gradients")

    @property
    def places(self) -> int:
        """Layers that may be changed; of an erasure, points."""
        return self.layers + self.erases

    @property
    def source_blocks(self) -> int:
        """Tasks along the source axis."""
        return -(-self.places // self.sources_per_task)

    @property
    def tasks(self) -> int:
        """How many tasks there are."""
        return -(-len(self.documents) // self.documents_per_task) * self.source_blocks

    def task(self, index: int) -> EffectsTask:
        """The task of that number."""
        block, source = divmod(index, self.source_blocks)
        first = block * self.documents_per_task
        begin = source * self.sources_per_task
        return EffectsTask(
            index,
            (first, min(first + self.documents_per_task, len(self.documents))),
            (begin, min(begin + self.sources_per_task, self.places)),
        )

    @classmethod
    def path(cls, root: Path, name: str) -> Path:
        """Where the record lies."""
        return StorePaths(root).effects(name).with_suffix(".json")

    def save(self, root: Path) -> bool:
        """Create the record; False when it exists already."""
        return create_json(self.path(root, self.name), asdict(self))

    @classmethod
    def load(cls, root: Path, name: str) -> EffectsRecord:
        """Read the record.

        Raises
        ------
        RequestError
            There is no such sweep.
        """
        path = cls.path(root, name)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RequestError(
                f"{root} has no effects named {name!r}: run depthscope intervene {root} "
                f"--name {name}"
            ) from None
        for key in ("scopes", "kinds", "parts", "documents", "sources", "interventions"):
            content[key] = tuple(content[key])
        content["split_positions"] = tuple(tuple(row) for row in content["split_positions"])
        return cls(**content)


@dataclass(frozen=True)
class EffectsTask:
    """Some documents and some source layers of a sweep; ranges exclude their end.

    Attributes
    ----------
    index
        Number of the task.
    rows
        Places on the document axis.
    sources
        Layers on the source axis.
    """

    index: int
    rows: tuple[int, int]
    sources: tuple[int, int]

    @property
    def name(self) -> str:
        """For messages."""
        return f"effects task {self.index} (documents {self.rows[0]} to {self.rows[1] - 1})"

    @property
    def plain(self) -> Task:
        """As the dispatcher knows tasks."""
        return Task(self.index, self.rows, {})


def effects_log(root: Path, name: str) -> CommitLog:
    """The commits of a sweep."""
    return CommitLog(root, StorePaths(root).commits / "effects" / name)


def committed_effects(root: Path, record: EffectsRecord) -> Iterator[EffectsTask]:
    """The tasks of a sweep that are committed."""
    for index in effects_log(root, record.name).complete_tasks(record.layers):
        yield record.task(index)
