"""Saved results: datasets in a store's ``analysis`` folder that say what they were computed from.

A result is written beside its place and renamed when it is whole, so that nobody ever opens half
of one. Its attributes hold the identities of its inputs, the parameters and a fingerprint of both;
when the fingerprint is the same, the saved result is opened instead of being computed again.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
import xarray as xr
from blake3 import blake3
from depthscope.storage.atomic import sync_folder
from depthscope.storage.layout import StorePaths

from .snapshot import Snapshot
from .store import Run

#: Raised whenever the numbers of a result change for the same inputs, so that old ones are redone.
REVISION = 1


@dataclass(frozen=True)
class Provenance:
    """What a result is computed from.

    Attributes
    ----------
    name
        Name of the analysis.
    inputs
        Identity of every store, and what was visible of it.
    parameters
        Everything else that decides the numbers.
    partial
        Whether tasks are shown that are not complete.
    """

    name: str
    inputs: tuple[Mapping[str, Any], ...]
    parameters: Mapping[str, Any]
    partial: bool = False

    @classmethod
    def of(cls, run: Run, name: str, parameters: Mapping[str, Any]) -> Provenance:
        """The provenance of an analysis of a run."""
        chosen: dict[str, Any] = dict(parameters)
        if run.selected is not None:
            chosen["rows_digest"] = blake3(run.selected.tobytes()).hexdigest()
            chosen["predicates"] = list(run.predicates)
        inputs = tuple(
            {
                "identity": snapshot.record.identity,
                "model": snapshot.record.model.get("name", ""),
                "tasks": len(snapshot.tasks),
                "tasks_digest": _digest(_visible(snapshot)),
                "invalid_digest": _digest(snapshot.invalid),
            }
            for snapshot in run.snapshots
        )
        return cls(name, inputs, chosen, any(snapshot.begun for snapshot in run.snapshots))

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides the numbers."""
        return _digest([REVISION, self.name, self.inputs, self.parameters])

    def attributes(self) -> dict[str, Any]:
        """Attributes of the result's dataset."""
        return {
            "analysis": self.name,
            "inputs": [dict(one) for one in self.inputs],
            "parameters": dict(self.parameters),
            "fingerprint": self.fingerprint,
            "revision": REVISION,
            "partial": self.partial,
            "depthscope": depthscope_version(),
        }


def depthscope_version() -> str:
    """Version of the installed package."""
    try:
        return version("depthscope")
    except PackageNotFoundError:
        return "unknown"


def result_place(run: Run, name: str, out: Path | None) -> Path | None:
    """Where a result belongs: ``out``, or the store's analysis folder; None for a view.

    A result over a selection, or over several stores, is no property of a store and is only kept
    where it is asked for.
    """
    if out is not None:
        return out
    if run.selected is not None or len(run.snapshots) > 1:
        return None
    return StorePaths(run.snapshots[0].root).analysis(name)


def open_result(path: Path) -> xr.Dataset:
    """Open a saved result and load its values; its group ``documents`` has those per document."""
    with xr.open_zarr(path, consolidated=False) as found:
        loaded: xr.Dataset = found.load()
    return loaded


def reuse_result(path: Path | None, provenance: Provenance) -> xr.Dataset | None:
    """The saved result of the same inputs and parameters, if there is one."""
    if path is None or not path.is_dir():
        return None
    try:
        found = open_result(path)
    except (OSError, ValueError, KeyError):
        return None
    return found if found.attrs.get("fingerprint") == provenance.fingerprint else None


@contextmanager
def result_folder(path: Path | None) -> Iterator[Path]:
    """A folder to write a result into; it becomes ``path`` when the block ends without an error.

    None for a folder that is removed at the end.
    """
    if path is None:
        with tempfile.TemporaryDirectory(prefix="depthscope-") as scratch:
            yield Path(scratch) / "result.zarr"
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{token_hex(6)}")
    try:
        yield temporary
        _replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_dataset(dataset: xr.Dataset, folder: Path, group: str | None = None) -> None:
    """Write a dataset as Zarr v3 that ``xr.open_zarr(path, consolidated=False)`` reads."""
    # Zarr v3 has a portable type for text of any length, none for numpy's fixed-length text.
    text = {
        name: variable.astype(np.dtypes.StringDType())
        for name, variable in dataset.variables.items()
        if variable.dtype.kind == "U"
    }
    dataset.assign(text).to_zarr(folder, group=group, mode="a", zarr_format=3, consolidated=False)


def _replace(temporary: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.{token_hex(6)}.old")
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _visible(snapshot: Snapshot) -> list[Any]:
    shown: list[Any] = [snapshot.tasks, snapshot.complete, snapshot.points]
    return [*shown, list(snapshot.begun.items())] if snapshot.begun else shown


def _digest(value: Any) -> str:
    return blake3(json.dumps(value, sort_keys=True).encode()).hexdigest()
