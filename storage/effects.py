"""The store of one intervention sweep: its plan, its arrays and its commits.

`EffectsRecord` is to an intervention sweep what run.json is to an extraction. The arrays lie in
``effects/NAME.zarr``, one shard per task; commits lie in ``commits/effects/NAME``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from blake3 import blake3

from .arrays import ArrayPlan, create_array, create_group
from .atomic import create_json, encode_json
from .commits import CommitLog
from .coordinates import create_coordinate, create_labels
from .errors import RequestError
from .layout import StorePaths
from .tasks import Task

#: Axes of an effect; the output effects lack the last. An erasure has cases and points instead.
AXES = ("scope", "kind", "part", "document", "split", "source", "target")
ERASURE_AXES = ("case", "document", "point", "position")
GRADIENT_AXES = ("part", "document", "layer", "position")
EFFECTS = ("effect_max", "effect_mean")
OUTPUTS = ("output_l2_max", "output_l2_mean", "output_kl_mean")
#: Of the no-op branch; ``block`` numbers the tasks along the source axis, each with a no-op.
NOISE = {
    "noise_effect_max": ("block", "document", "target"),
    "noise_output_l2_max": ("block", "document"),
}


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


def effects_plans(record: EffectsRecord) -> dict[str, ArrayPlan]:
    """The arrays of a sweep, described; one shard per task."""
    sizes = {
        "scope": len(record.scopes),
        "kind": len(record.kinds),
        "part": len(record.parts),
        "document": len(record.documents),
        "split": record.splits,
        "source": record.layers,
        "target": record.layers,
    }
    cut = {"document": record.documents_per_task, "source": record.sources_per_task}
    sizes |= {"case": len(record.scopes), "point": record.places, "position": record.positions}
    sizes["layer"] = record.layers
    cut |= {"point": record.sources_per_task, "layer": record.sources_per_task}
    folder = f"effects/{record.name}.zarr"

    def plan(name: str, axes: tuple[str, ...]) -> ArrayPlan:
        shape = tuple(sizes[axis] for axis in axes)
        shard = tuple(min(cut[axis], sizes[axis]) if axis in cut else sizes[axis] for axis in axes)
        return ArrayPlan(f"{folder}/{name}", shape, "float32", axes, shard, shard)

    # One column per block of sources, so that every task writes files of its own.
    sizes["block"], cut["block"] = record.source_blocks, 1
    if record.erases:
        noise = "noise_output_l2_max"
        return {"output_l2": plan("output_l2", ERASURE_AXES), noise: plan(noise, NOISE[noise])}
    if record.is_gradients:
        summed = ("completeness_gap", "target_value", "baseline_value")
        plans = {name: plan(name, GRADIENT_AXES[:-1]) for name in summed}
        return plans | {"attribution": plan("attribution", GRADIENT_AXES)}
    plans = {name: plan(name, AXES) for name in EFFECTS}
    plans |= {name: plan(name, AXES[:-1]) for name in OUTPUTS}
    return plans | {name: plan(name, axes) for name, axes in NOISE.items()}


def shard_index(record: EffectsRecord, task: EffectsTask, plan: ArrayPlan) -> tuple[int, ...]:
    """Which shard of an array a task writes."""
    source = task.sources[0] // record.sources_per_task
    places = {"document": task.rows[0] // record.documents_per_task}
    places |= dict.fromkeys(("source", "block", "point", "layer"), source)
    return tuple(places.get(axis, 0) for axis in plan.dimensions)


def lay_out_effects(root: Path, record: EffectsRecord) -> None:
    """Create the group, its coordinates and its arrays; nothing happens where they exist.

    Raises
    ------
    RequestError
        Another sweep has that name.
    """
    folder = f"effects/{record.name}.zarr"
    attributes = {
        "name": record.name,
        "identity": record.identity,
        "request": dict(record.request),
        "interventions": [dict(item) for item in record.interventions],
        **{key: record.identity_fields[key] for key in ("store_identity", "dtype", "what")},
    }
    create_group(root, folder, attributes)
    labels = {"scope": record.scopes, "kind": record.kinds, "part": record.parts}
    counts = {"split": record.splits, "source": record.layers, "target": record.layers}
    if record.is_gradients:
        labels, counts = (
            {"part": record.parts},
            {
                "layer": record.layers,
                "position": record.positions,
            },
        )
    if record.erases:
        labels = {"case": record.scopes}
        counts = {"point": record.places, "position": record.positions}
    for axis, names in labels.items():
        if not (root / folder / axis / "zarr.json").exists():
            create_labels(root, f"{folder}/{axis}", names, axis)
    create_coordinate(root, f"{folder}/document", np.array(record.documents, np.int64), "document")
    for axis, count in counts.items():
        create_coordinate(root, f"{folder}/{axis}", np.arange(count, dtype=np.int64), axis)
    if not record.positions:
        _create_split_positions(root / folder / "split_position", record)
    for plan in effects_plans(record).values():
        create_array(root, plan)


def _create_split_positions(path: Path, record: EffectsRecord) -> None:
    if (path / "zarr.json").exists():
        return
    table = np.full((len(record.documents), record.splits), -1, np.int64)
    for number, row in enumerate(record.split_positions):
        table[number, : len(row)] = row
    array = zarr.create_array(
        path,
        shape=table.shape,
        chunks=table.shape,
        dtype="int64",
        dimension_names=["document", "split"],
        fill_value=-1,
        zarr_format=3,
    )
    array[:] = table


def committed_effects(root: Path, record: EffectsRecord) -> Iterator[EffectsTask]:
    """The tasks of a sweep that are committed."""
    for index in effects_log(root, record.name).complete_tasks(record.layers):
        yield record.task(index)
