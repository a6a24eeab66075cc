"""The results that a report shows: those saved in a store, or computed for it."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xarray as xr
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths

from .depth import depth
from .effects import Kind, effects_names
from .interactions import interactions
from .result_kinds import kind_name
from .results import Provenance, open_result
from .store import Run
from .token_effects import erasure, gradients

#: Kinds of results that are shown where they are saved, in the order of the page.
ON_REQUEST = ("tuned_lens", "flips", "onset", "probes", "geometry")

_BOOTSTRAP = ("resamples", "seed", "level")


def computed(analysis: Callable[..., xr.Dataset], run: Run, **arguments: Any) -> xr.Dataset:
    """A result, kept in the store where that can be written."""
    try:
        return analysis(run, **arguments)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    # The store is for reading only: compute without keeping the result in it.
    with tempfile.TemporaryDirectory(prefix="depthscope-") as scratch:
        return analysis(run, out=Path(scratch) / "result.zarr", **arguments)


def depth_of(run: Run) -> xr.Dataset | None:
    """Effective depth with the saved result's parameters; None where there are no curves."""
    if not any(run.has(name) and len(run.stored(name).axis) for name in ("norm_ratio", "kl")):
        return None
    saved = _saved_parameters(run, "depth")
    known = (*_BOOTSTRAP, "kl_share", "overlap_least", "source")
    arguments = {key: saved[key] for key in known if key in saved}
    if "token_set" in saved:
        arguments["tokens"] = saved["token_set"]
    return computed(depth, run, **arguments)


def interactions_of(run: Run) -> tuple[xr.Dataset | None, list[str]]:
    """The interactions last analysed, or of the only sweep; and what a reader must know."""
    root = run.snapshots[0].root
    names = effects_names(root)
    saved = _saved_parameters(run, "interactions")
    name = saved.get("effects") if saved.get("effects") in names else None
    if name is None and len(names) != 1:
        several = (
            f"The store has several effects ({', '.join(names)}); depthscope analyze with "
            "--effects chooses those to show."
        )
        return None, [several] if names else []
    arguments = {key: saved[key] for key in _BOOTSTRAP if key in saved}
    try:
        result = computed(interactions, run, effects=name or names[0], partial=True, **arguments)
    except RequestError as error:
        return None, [f"Effects {name or names[0]} are not shown: {error}"]
    notes = []
    done, tasks = result.attrs["effects_tasks"].split(" of ")
    if done != tasks:
        notes.append(f"Only {done} of {tasks} tasks of effects {name or names[0]} are committed.")
    dropped = max(result.attrs["dropped_documents"].values())
    if dropped:
        notes.append(f"{dropped:,} documents of the effects have no valid split and are left out.")
    return result, notes


def token_effects_of(run: Run, kind: Kind) -> xr.Dataset | None:
    """Erasure or gradients as last analysed, or of the only such sweep; else None."""
    analysis = {"erase": erasure, "gradients": gradients}[kind]
    saved = _saved_parameters(run, analysis.__name__)
    names = effects_names(run.snapshots[0].root, kind)
    name = saved.get("effects") if saved.get("effects") in names else None
    if name is None and len(names) != 1:
        return None
    arguments = {key: saved[key] for key in _BOOTSTRAP if key in saved}
    try:
        return computed(analysis, run, effects=name or names[0], partial=True, **arguments)
    except RequestError:
        return None


def depth_score_of(run: Run) -> xr.Dataset | None:
    """The depth score as it was last analysed, since only the user knows the level's field."""
    place = StorePaths(run.snapshots[0].root).analysis("depth_score")
    saved = _saved(place)
    return saved if saved is not None and _of_this_store(run, saved) else None


def saved_results_of(run: Run) -> tuple[dict[str, xr.Dataset], list[str]]:
    """Results that only their names ask for, as last analysed; and what a reader must know.

    They pass over all stored activations, so a report does not bring them up to date: it says so.
    """
    root = run.snapshots[0].root
    folder = StorePaths(root).analysis("any").parent
    places = {path.stem: path for path in sorted(folder.glob("*.zarr"))}
    found, notes = dict[str, xr.Dataset](), []
    inputs = [dict(one) for one in Provenance.of(run, "report", {}).inputs]
    for kind in ON_REQUEST:
        for name in (name for name in places if kind_name(name) == kind):
            saved = _saved(places[name])
            if saved is None or not _of_this_store(run, saved):
                continue
            found[name] = saved
            if list(saved.attrs["inputs"]) != inputs:
                notes.append(
                    f"{name} is older than the store, which has changed since: depthscope analyze "
                    f"{root.name} {kind} with the same options brings it up to date."
                )
    return found, notes


def _of_this_store(run: Run, saved: xr.Dataset) -> bool:
    return saved.attrs["inputs"][0]["identity"] in run.snapshots[0].record.identities


def _saved_parameters(run: Run, name: str) -> dict[str, Any]:
    saved = _saved(StorePaths(run.snapshots[0].root).analysis(name))
    return {} if saved is None else dict(saved.attrs["parameters"])


def _saved(place: Path) -> xr.Dataset | None:
    if not place.is_dir():
        return None
    try:
        found = open_result(place)
    except (OSError, ValueError, KeyError):
        return None
    return found if {"parameters", "inputs"} <= found.attrs.keys() else None
