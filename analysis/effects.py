"""Opening the effects of an intervention sweep: what its commits cover, as lazy labelled arrays.

A missing shard reads as NaN without any error, and a published one may still lack its commit, so
everything goes through the commits: what no commit covers is NaN here whatever lies on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from depthscope.storage.effects import EffectsRecord, EffectsTask, committed_effects, effects_log
from depthscope.storage.effects_arrays import AXES, EFFECTS, NOISE, OUTPUTS
from depthscope.storage.errors import Damage, RequestError
from depthscope.storage.layout import StorePaths
from numpy.typing import NDArray

from .per_document import Documents
from .store import Run

#: What a sweep measured: effects of layers on layers, of erasing, or integrated gradients.
Kind = Literal["layers", "erase", "gradients"]

#: The arrays by which a kind is known, what they hold, and what makes them.
_ARRAYS = {"layers": (*EFFECTS, *OUTPUTS), "erase": ("output_l2",), "gradients": ("attribution",)}
_MEANINGS = {
    "layers": "layer-to-layer effects",
    "erase": "effects of erasing",
    "gradients": "integrated gradients",
}
_MADE_BY = {
    "layers": "skip, zero, mean, patch or scale",
    "erase": "erase",
    "gradients": "gradients",
}


@dataclass(frozen=True, eq=False)
class Effects:
    """The committed part of one sweep.

    Attributes
    ----------
    root
        The store's folder.
    record
        What the sweep does.
    tasks
        The committed tasks, ascending.
    selected
        Document numbers to which this view is restricted; None shows all.
    """

    root: Path
    record: EffectsRecord
    tasks: tuple[EffectsTask, ...]
    selected: NDArray[np.int64] | None = None

    @property
    def whole(self) -> bool:
        """Whether every task is committed."""
        return len(self.tasks) == self.record.tasks

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Shown places on the document axis: any task of theirs is committed."""
        seen = np.zeros(len(self.record.documents), np.bool_)
        for task in self.tasks:
            seen[slice(*task.rows)] = True
        if self.selected is not None:
            seen &= np.isin(np.array(self.record.documents, np.int64), self.selected)
        return np.flatnonzero(seen)

    @property
    def documents(self) -> NDArray[np.int64]:
        """Numbers of the shown documents, ascending."""
        return np.array(self.record.documents, np.int64)[self.places]

    @property
    def split_positions(self) -> NDArray[np.int64]:
        """(document, split) int64: positions of the shown documents' splits, -1 for none."""
        table = np.full((len(self.record.documents), self.record.splits), -1, np.int64)
        for number, row in enumerate(self.record.split_positions):
            table[number, : len(row)] = row
        return table[self.places]

    def array(self, name: str) -> xr.DataArray:
        """An effect, output effect or noise of the shown documents: float32, lazy.

        Its axes are those of ``storage.effects``; what is not committed is NaN.
        """
        stored = zarr.open_array(StorePaths(self.root).effects(self.record.name) / name, mode="r")
        dims = NOISE.get(name, AXES if name in EFFECTS else AXES[:-1])
        values = da.from_array(stored, chunks=stored.chunks, name=False, inline_array=True)
        if not self.whole:
            values = self._committed_only(values, dims)
        if len(self.places) < len(self.record.documents):
            values = da.take(values, self.places, axis=dims.index("document"))
        labels = {axis: self.labels[axis] for axis in dims if axis in self.labels}
        return xr.DataArray(values, labels, dims, name)

    def _committed_only(self, values: da.Array, dims: Sequence[str]) -> da.Array:
        """The values, with NaN in the blocks of tasks that are not committed."""
        along = {"document": self.record.documents_per_task}
        along |= {"source": self.record.sources_per_task, "block": 1}
        chunks = {axis: along.get(dim, -1) for axis, dim in enumerate(dims)}
        done = {(task.rows[0], task.sources[0]) for task in self.tasks}
        places = [dims.index("document"), dims.index("source" if "source" in dims else "block")]
        sizes = self.record.documents_per_task, self.record.sources_per_task

        def keep(block: NDArray[Any], block_info: Any = None) -> NDArray[Any]:
            at = block_info[0]["chunk-location"]
            task = tuple(at[axis] * size for axis, size in zip(places, sizes, strict=True))
            return block if task in done else np.full_like(block, np.nan)

        return values.rechunk(chunks).map_blocks(keep, dtype=values.dtype, meta=values._meta)

    @cached_property
    def labels(self) -> dict[str, NDArray[Any]]:
        """Labels of every axis of the shown effects."""
        record, layers = self.record, np.arange(self.record.layers)
        return {
            "scope": np.array(record.scopes),
            "kind": np.array(record.kinds),
            "part": np.array(record.parts),
            "document": self.documents,
            "split": np.arange(record.splits),
            "source": layers,
            "target": layers,
        }


def effects_names(root: Path, kind: Kind = "layers") -> list[str]:
    """Names of the sweeps of a store that measured this kind of effect, sorted."""
    folder = StorePaths(root).effects("x").parent
    found = sorted(path.stem for path in folder.glob("*.zarr"))
    return [name for name in found if _has(root, name, kind)]


def open_effects(
    run: Run, name: str | None = None, *, partial: bool = False, kind: Kind = "layers"
) -> Effects:
    """Open a sweep of the store that a run shows.

    Parameters
    ----------
    run
        From ``open``; a selection must hold whole documents, to which the effects are restricted.
    name
        None for the only sweep there is.
    partial
        Whether a sweep may be opened of which not every task is committed.
    kind
        ``layers``: effects of layers on layers; ``erase``, ``gradients``: of those sweeps.

    Raises
    ------
    RequestError
        There is no such sweep, it is of another kind or store, it is not finished, or several
        stores are open.
    Damage
        A committed shard is missing.
    """
    if len(run.snapshots) > 1:
        raise RequestError(f"{len(run.snapshots)} stores are open, effects are of one: open that")
    root = run.snapshots[0].root
    name = name or _only_name(root, kind)
    record = EffectsRecord.load(root, name)
    if not _has(root, name, kind):
        raise RequestError(
            f"{root}: effects {name} hold no {_MEANINGS[kind]}; name effects that were made with "
            f"depthscope intervene --what {_MADE_BY[kind]}"
        )
    identity = record.identity_fields.get("store_identity")
    if identity not in run.snapshots[0].record.identities:
        raise RequestError(
            f"{root}: effects {name} were measured for another run of this store; run depthscope "
            f"intervene {root} again under another --name"
        )
    tasks = tuple(committed_effects(root, record))
    if not tasks or (len(tasks) < record.tasks and not partial):
        instead = ", or add --partial to use what is committed" if tasks else ""
        raise RequestError(
            f"{root}: effects {name} have {len(tasks)} of {record.tasks} tasks committed: resume "
            f"with depthscope intervene {root} --name {name}{instead}"
        )
    _require_shards(root, name)
    return Effects(root, record, tasks, _whole_documents(run))


def _only_name(root: Path, kind: Kind) -> str:
    names = effects_names(root, kind)
    if len(names) == 1:
        return names[0]
    if names:
        raise RequestError(f"{root} has several effects; choose with --effects: {', '.join(names)}")
    what = "" if kind == "layers" else f" --what {kind}"
    raise RequestError(
        f"{root} has no {_MEANINGS[kind] if what else 'effects'}: run depthscope intervene {root} "
        f"--name NAME{what} first"
    )


def _has(root: Path, name: str, kind: Kind) -> bool:
    folder = StorePaths(root).effects(name)
    return all((folder / array / "zarr.json").exists() for array in _ARRAYS[kind])


def _require_shards(root: Path, name: str) -> None:
    for commit in effects_log(root, name).commits():
        for shard in commit.shards:
            if not (root / shard.path).exists():
                raise Damage(
                    f"{root / shard.path} is committed but missing: run depthscope verify {root} "
                    f"--repair, then depthscope intervene {root} --name {name}"
                )


def _whole_documents(run: Run) -> NDArray[np.int64] | None:
    """Documents of a selection; None where everything is shown."""
    if run.selected is None:
        return None
    axis = run.axis("tokens")
    found = Documents.on(run.snapshots, axis)
    lengths = found.end_row - found.first_row
    if not np.array_equal(axis.counts(found.first_row, lengths), lengths):
        raise RequestError(
            "effects belong to whole documents: select with a predicate on documents only"
        )
    return found.number
