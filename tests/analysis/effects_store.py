"""Effects of an intervention sweep made by hand, added to a small store.

The storage package lays the arrays out; every number in them comes from here, as the contract of
``effects/NAME.zarr`` has it: NaN below the diagonal, in pairs without a split, and for scope
``all`` beside split 0; 1 or 0 on the diagonal of propagated effects; NaN on that of local ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from depthscope.storage.effects import EffectsRecord
from depthscope.storage.effects_arrays import lay_out_effects
from depthscope.storage.run_record import RunRecord

Array = np.ndarray
SCOPES, KINDS, PARTS = ("all", "future"), ("propagated", "local"), ("layer", "attention", "mlp")
OUTPUTS = ("output_l2_max", "output_l2_mean", "output_kl_mean")
POISON = 555.0


@dataclass
class SmallEffects:
    """Effects on disk, and everything that is in them."""

    root: Path
    record: EffectsRecord
    values: dict[str, Array]
    split_position: Array
    committed: tuple[int, ...]

    @property
    def layers(self) -> int:
        return self.record.layers


def add_effects(
    root: Path,
    name: str = "skip",
    *,
    documents: Sequence[int] = (0, 2, 4, 6, 8, 9),
    splits: Sequence[Sequence[int]] | None = None,
    scopes: Sequence[str] = SCOPES,
    kinds: Sequence[str] = KINDS,
    parts: Sequence[str] = PARTS,
    documents_per_task: int = 2,
    sources_per_task: int | None = None,
    committed: Sequence[int] | None = None,
    sources: Sequence[int] | None = None,
    change: Callable[[dict[str, Array]], None] | None = None,
    seed: int = 0,
    store_identity: str | None = None,
) -> SmallEffects:
    """Write a sweep; ``change`` may alter the arrays in place before they are written."""
    run = RunRecord.load(root)
    layers = int(run.model["layers"])
    if splits is None:
        splits = [(1, 3)[: 1 + n % 2] for n in range(len(documents))]
    record = EffectsRecord(
        name=name,
        identity_fields={
            "store_identity": store_identity or run.identity,
            "dtype": "float32",
            "what": "skip",
            "seed": seed,
        },
        request={"what": "skip", "seed": seed},
        layers=layers,
        scopes=tuple(scopes),
        kinds=tuple(kinds),
        parts=tuple(parts),
        documents=tuple(documents),
        split_positions=tuple(tuple(row) for row in splits),
        sources=tuple(range(layers)) if sources is None else tuple(sources),
        documents_per_task=documents_per_task,
        sources_per_task=sources_per_task or layers,
    )
    record.save(root)
    lay_out_effects(root, record)
    values = make_values(record, seed)
    if change is not None:
        change(values)
    done = tuple(range(record.tasks)) if committed is None else tuple(committed)
    table = np.full((len(documents), record.splits), -1)
    for number, row in enumerate(splits):
        table[number, : len(row)] = row
    effects = SmallEffects(root, record, values, table, done)
    _write(effects)
    return effects


def make_values(record: EffectsRecord, seed: int) -> dict[str, Array]:
    """Random effects with NaN, 0 and 1 where the contract wants them; noise below 1e-6."""
    random = np.random.default_rng(seed)
    shape = (
        len(record.scopes), len(record.kinds), len(record.parts),
        len(record.documents), record.splits, record.layers,
    )  # fmt: skip
    values = {"effect_max": random.gamma(2.0, 0.2, (*shape, record.layers))}
    values["effect_mean"] = values["effect_max"] * random.uniform(0.2, 0.9, (*shape, record.layers))
    values |= {name: random.gamma(2.0, 0.1, shape) for name in OUTPUTS}
    for a, scope in enumerate(record.scopes):
        for b, kind in enumerate(record.kinds):
            for c, part in enumerate(record.parts):
                for array in values.values():
                    _rules(array[a, b, c], scope, kind, part, record)
    blocks, documents = record.source_blocks, len(record.documents)
    values["noise_effect_max"] = random.uniform(0, 1e-6, (blocks, documents, record.layers))
    values["noise_output_l2_max"] = random.uniform(0, 1e-7, (blocks, documents))
    return {name: array.astype(np.float32) for name, array in values.items()}


def _rules(array: Array, scope: str, kind: str, part: str, record: EffectsRecord) -> None:
    """One scope, kind and part: (document, split, source[, target])."""
    layers = record.layers
    if array.ndim == 4:
        for source in range(layers):
            array[:, :, source, :source] = np.nan
            if kind == "local":
                array[:, :, source, source] = np.nan
            elif scope == "future":
                array[:, :, source, source] = 0
            elif part == "layer":
                array[:, :, source, source] = 1
    elif kind == "local":
        array[:] = np.nan
    for number, row in enumerate(record.split_positions):
        array[number, 1 if scope == "all" else len(row) :] = np.nan
    array[:, :, [s for s in range(layers) if s not in record.sources]] = np.nan


def commit_effects(effects: SmallEffects, task: int, shards: Sequence[str] = ()) -> None:
    """Write the commit of a task."""
    folder = effects.root / "commits" / "effects" / effects.record.name / f"{task:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "task": task,
        "points": [0, effects.layers],
        "rows": list(effects.record.task(task).rows),
        "shards": [[path, "digest", 1] for path in shards],
        "nonfinite": {},
        "invalid_documents": [],
    }
    (folder / f"0-{effects.layers}.json").write_text(json.dumps(content))


def _write(effects: SmallEffects) -> None:
    record = effects.record
    folder = effects.root / "effects" / f"{record.name}.zarr"
    for name, values in effects.values.items():
        written = values.copy()
        array: Any = zarr.open_array(folder / name, mode="r+")
        for task in range(record.tasks):
            if task not in effects.committed:
                # Published without its commit, so nobody may read it.
                written[_region(name, record, task)] = POISON
        array[...] = written
    for task in effects.committed:
        commit_effects(effects, task)


def _region(name: str, record: EffectsRecord, task: int) -> tuple[Any, ...]:
    """Where a task's values are."""
    found = record.task(task)
    documents, sources = slice(*found.rows), slice(*found.sources)
    if name.startswith("noise"):
        return (slice(task % record.source_blocks, task % record.source_blocks + 1), documents)
    return (slice(None), slice(None), slice(None), documents, slice(None), sources)
