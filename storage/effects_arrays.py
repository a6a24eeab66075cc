"""The arrays of an intervention sweep: their axes and names, one shard of each per task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr

from .arrays import ArrayPlan, create_array, create_group
from .coordinates import create_coordinate, create_labels
from .effects import EffectsRecord, EffectsTask

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
