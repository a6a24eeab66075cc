"""Which layers build on which: the effects of an intervention sweep, reduced over its documents.

effect(source, target) says by how much what layer ``target`` adds to the stream changes when layer
``source`` is changed, relative to what it adds otherwise: ‖c − c'‖ / max(‖c‖, 1e-6). Reported are
the maximum over documents and splits, and the mean over documents of the mean over splits of the
mean over positions, with its bootstrap interval over documents; the output effect likewise, as the
L2 distance of next-token probabilities and as KL divergence. Source: Csordás et al. 2025, section
4, who report maxima.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr
from blake3 import blake3
from depthscope.storage.effects_arrays import NOISE
from depthscope.storage.errors import RequestError

from .client import compute_on
from .effect_documents import EffectCounts, document_effects
from .effect_means import means_over_documents
from .effects import Effects, open_effects
from .results import Provenance, result_folder, result_place, reuse_result, save_dataset
from .store import Run
from .summary import Settings
from .task_progress import task_progress

#: What is reported with an interval: its variable by document, and what it means.
MEANS = {
    "effect": ("effect_mean", "relative change of what the target adds", "1"),
    "output_l2": ("output_l2_mean", "L2 distance of next-token probabilities", "1"),
    "output_kl": ("output_kl_mean", "KL divergence of next-token distributions", "nat"),
}
#: What is reported as the largest.
MAXIMA = {"effect": "effect_max", "output_l2": "output_l2_max"}

RESULT_AXES = ("scope", "kind", "part", "source", "target")

#: Bytes of a stored block of documents: all pairs of layers of one scope, kind and part.
BLOCK_BYTES = 16 << 20


def interactions(
    run: Run, effects: str | None = None, *, partial: bool = False, **settings: Any
) -> xr.Dataset:
    """The layer-interaction matrix of a sweep, with output effects and the noise floor.

    Parameters
    ----------
    run
        From ``open``; a selection of whole documents is respected.
    effects
        Name of the sweep; None for the only one.
    partial
        Whether to use an unfinished sweep as far as it is committed.
    settings
        Fields of ``Settings``: resamples, seed, level, out, scheduler, workers, progress.

    Returns
    -------
    xarray.Dataset
        Axes scope, kind, part, source, target. effect_max, effect_mean, effect_low, effect_high
        (target < source is NaN) and count, the documents behind each; without target
        output_l2_max, output_l2_mean, output_l2_low, output_l2_high, output_kl_mean,
        output_kl_low, output_kl_high and output_count. noise_floor (target) and
        output_noise_floor are the largest effects of the no-op branches. The group ``documents``
        holds every document's means and maxima.

    Raises
    ------
    RequestError
        There is no such sweep, it is not finished, or no document has a valid split.
    """
    chosen = Settings(**settings)
    opened = open_effects(run, effects, partial=partial)
    provenance = Provenance.of(run, "interactions", effects_parameters(opened, chosen))
    place = result_place(run, "interactions", chosen.out)
    found = reuse_result(place, provenance)
    if found is not None:
        return found
    with compute_on(chosen.scheduler, workers=chosen.workers):
        counts = EffectCounts.of(opened)
    require_documents(opened, counts)
    with result_folder(place) as folder:
        _save_documents(opened, counts, folder, chosen)
        result = _summarise(folder, opened, chosen).merge(_noise(opened, counts))
        result.attrs = {**provenance.attributes(), **effects_attributes(opened, counts)}
        save_dataset(result, folder)
    return result


def effects_parameters(effects: Effects, settings: Settings) -> dict[str, Any]:
    """What decides a result of effects, beside the store: the sweep and the bootstrap."""
    tasks = [task.index for task in effects.tasks]
    return {
        "effects": effects.record.name,
        "effects_identity": effects.record.identity,
        "effects_tasks": len(tasks),
        "effects_tasks_digest": blake3(repr(tasks).encode()).hexdigest(),
        "resamples": settings.resamples,
        "seed": settings.seed,
        "level": settings.level,
    }


def effects_attributes(effects: Effects, counts: EffectCounts) -> dict[str, Any]:
    """What a result of effects says about its sample, for its attributes."""
    used = (counts.splits > 0).sum("document")
    pairs = counts.splits.sum("document")
    scopes = effects.record.scopes
    return {
        "documents": {scope: int(used.sel(scope=scope)) for scope in scopes},
        "dropped_documents": {
            scope: len(effects.places) - int(used.sel(scope=scope)) for scope in scopes
        },
        "splits": {scope: int(pairs.sel(scope=scope)) for scope in scopes},
        "nonfinite_values": counts.nonfinite,
        "effects_tasks": f"{len(effects.tasks)} of {effects.record.tasks}",
        "request": dict(effects.record.request),
        "interventions": [dict(item) for item in effects.record.interventions],
    }


def require_documents(effects: Effects, counts: EffectCounts) -> None:
    """Refuse effects without anything in them.

    Raises
    ------
    RequestError
        No document has a valid split in one of the scopes.
    """
    used = (counts.splits > 0).sum("document")
    for scope in effects.record.scopes:
        if not int(used.sel(scope=scope)):
            raise RequestError(
                f"{effects.root}: none of the {len(effects.places)} documents of effects "
                f"{effects.record.name} has a valid split in scope {scope}: run depthscope "
                "intervene under another --name with splits inside the documents"
            )


def _save_documents(
    effects: Effects, counts: EffectCounts, folder: Path, settings: Settings
) -> None:
    kept = document_effects(effects)
    layers = effects.record.layers
    block = max(1, BLOCK_BYTES // (8 * layers * layers))
    kept = kept.chunk({"scope": 1, "kind": 1, "part": 1, "document": block, "source": -1})
    kept["splits"] = counts.splits
    with (
        compute_on(settings.scheduler, workers=settings.workers),
        task_progress(settings.progress),
    ):
        save_dataset(kept, folder, "documents")


def _summarise(folder: Path, effects: Effects, settings: Settings) -> xr.Dataset:
    label = f"{round(100 * settings.level)}% bootstrap interval over documents"
    result = xr.Dataset(coords={axis: effects.labels[axis] for axis in RESULT_AXES})
    with xr.open_zarr(folder, group="documents", consolidated=False) as labelled:
        kept = labelled.drop_vars(list(labelled.coords))
        for name, (variable, meaning, unit) in MEANS.items():
            found = means_over_documents(kept[variable], settings)
            for key, text in (
                ("mean", "mean over documents of the mean over splits and positions"),
                ("low", f"low end of the {label}"),
                ("high", f"high end of the {label}"),
            ):
                result[f"{name}_{key}"] = found[key].assign_attrs(
                    long_name=f"{meaning}: {text}", units=unit
                )
            result["count" if name == "effect" else "output_count"] = found["count"].assign_attrs(
                long_name="documents behind the mean", units="document"
            )
        with compute_on(workers=settings.workers):
            for name, variable in MAXIMA.items():
                largest = kept[variable].max("document").compute()
                text = f"{MEANS[name][1]}: largest of all documents, splits and positions"
                result[variable] = largest.assign_attrs(long_name=text, units="1")
    return result


def _noise(effects: Effects, counts: EffectCounts) -> xr.Dataset:
    """The largest effects of no-op branches, of the documents that are used in any scope."""
    used = (counts.splits > 0).any("scope")
    found = {}
    for name, variable, text in (
        ("noise_floor", "noise_effect_max", "relative change of what the target adds"),
        ("output_noise_floor", "noise_output_l2_max", "L2 distance of next-token probabilities"),
    ):
        dims = [dim for dim in NOISE[variable] if dim != "target"]
        largest = effects.array(variable).where(used).max(dims, skipna=True).compute()
        found[name] = largest.assign_attrs(
            long_name=f"{text} under a no-op that runs through every kernel: largest", units="1"
        )
    return xr.Dataset(found)
