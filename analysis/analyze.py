"""Running several analyses by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths

from .client import compute_on
from .contributions import Source, contributions
from .depth import TokenSet, depth
from .depth_rules import KL_SHARE, OVERLAP_LEAST
from .depth_score import depth_score
from .effects import Kind, effects_names, open_effects
from .flips import flips
from .geometry import geometry
from .interactions import interactions
from .lens import lens
from .onset import RANKS, onset
from .probe_units import Pool
from .probes import probes
from .result_kinds import sentences_of
from .row_classes import By
from .store import Run, StorePath, open
from .target_ranks import Target
from .token_effects import erasure, gradients
from .translators import Lens
from .tuned_lens import LensSettings, tuned_lens

#: Every analysis by name, in the order in which ``analyze`` runs them.
ANALYSES: dict[str, Callable[..., xr.Dataset]] = {
    "contributions": contributions,
    "lens": lens,
    "depth": depth,
    "interactions": interactions,
    "depth_score": depth_score,
    "erasure": erasure,
    "gradients": gradients,
    "geometry": geometry,
    "probes": probes,
    "onset": onset,
    "flips": flips,
    "tuned_lens": tuned_lens,
}

#: The arguments of ``analyze`` that each analysis takes, beside its settings.
_ARGUMENTS = {
    "contributions": ("source",),
    "lens": ("source",),
    "depth": ("source", "tokens", "kl_share", "overlap_least"),
    "interactions": ("effects", "partial"),
    "depth_score": ("field", "effects", "partial", "part", "order"),
    "erasure": ("effects", "partial"),
    "gradients": ("effects", "partial"),
    "geometry": ("memory",),
    "probes": ("label", "labels", "pool", "folds", "memory"),
    "onset": ("by", "target", "lens", "ranks", "frequencies", "answer"),
    "flips": ("lens", "frequencies"),
    "tuned_lens": ("training", "device", "memory"),
}

#: Analyses that pass over all stored activations and are only run by name.
_BY_NAME = ("onset", "flips", "tuned_lens")

#: The arrays without which an analysis cannot be computed, by source and name.
_NEEDED = {
    "statistics": {"contributions": "norm_ratio", "lens": "kl"},
    "activations": {"contributions": "mlp_output", "lens": "residual"},
}

#: The kind of sweep that an analysis reduces.
_KINDS: dict[str, Kind] = {"interactions": "layers", "erasure": "erase", "gradients": "gradients"}


def analyze(
    store: StorePath,
    names: Sequence[str] | None = None,
    *,
    source: Source = "statistics",
    effects: str | None = None,
    partial: bool = False,
    field: str | None = None,
    order: Sequence[str] | None = None,
    part: str = "layer",
    tokens: TokenSet = "content",
    kl_share: float = KL_SHARE,
    overlap_least: float = OVERLAP_LEAST,
    memory: int | None = None,
    by: By = "bucket",
    target: Target = "final",
    ranks: Sequence[int] = RANKS,
    frequencies: Path | None = None,
    answer: str | None = None,
    lens: Lens = "logit",
    training: LensSettings | None = None,
    device: str | None = None,
    label: str | None = None,
    labels: Sequence[str] | None = None,
    pool: Pool | None = None,
    folds: int = 5,
    report: Callable[[str], None] | None = None,
    **settings: Any,
) -> dict[str, Path]:
    """Run analyses of a store and save their results in it.

    Parameters
    ----------
    store
        A store's folder.
    names
        Names of ``ANALYSES``; none runs every one for which the store has what it needs.
    source
        ``statistics`` or ``activations``, for contributions, lens and depth.
    effects, partial
        Name of an intervention sweep, None for the only one of its kind, and whether it may be
        unfinished; for interactions, depth_score, erasure and gradients.
    field, order, part
        Field that holds a document's level, its levels in order, and the part that was changed;
        for depth_score, which is only run where a field is given.
    tokens, kl_share, overlap_least
        Token set and parameters of the rules, for depth.
    memory
        Bytes that a process may hold, for geometry, which is only run by name or where the source
        is ``activations``, since it reads all of them, for probes and for tuned_lens.
    label, labels, pool, folds
        Column to predict, its values to use, what is classified, and the parts of the documents;
        for probes, which are only run where a label is given.
    by, target, lens, ranks, frequencies, answer
        Of ``onset``, and lens and frequencies of ``flips``; both are only run by name.
    training, device
        How and where ``tuned_lens`` is trained, which is only run by name.
    report
        Called with a line of text before and after each analysis.
    settings
        Fields of ``Settings``: resamples, seed, level, scheduler, workers, progress; and out,
        where one analysis is named.

    Returns
    -------
    dict
        Where each result lies, by name.

    Raises
    ------
    RequestError
        An unknown name, or a named analysis of which the store lacks what it needs.
    """
    given = {
        "source": source,
        "effects": effects,
        "partial": partial,
        "field": field,
        "order": order,
        "part": part,
        "tokens": tokens,
        "kl_share": kl_share,
        "overlap_least": overlap_least,
        "memory": memory,
        "by": by,
        "target": target,
        "ranks": ranks,
        "frequencies": frequencies,
        "answer": answer,
        "lens": lens,
        "training": training,
        "device": device,
        "label": label,
        "labels": labels,
        "pool": pool,
        "folds": folds,
    }
    out: Path | None = settings.get("out")
    _check(names, given, out)
    run = open(store)
    chosen = names or [name for name in ANALYSES if _available(run, name, given)]
    say = report or (lambda _: None)
    found = {}
    with compute_on(settings.get("scheduler"), workers=settings.get("workers")):
        for name in chosen:
            say(f"{name}: computing{f' from {source}' if 'source' in _ARGUMENTS[name] else ''}")
            arguments = {key: given[key] for key in _ARGUMENTS[name]}
            result = ANALYSES[name](run, **arguments, **settings)
            for sentence in sentences_of(name, result):
                say(f"{name}: {sentence}")
            saved = StorePaths(run.snapshots[0].root).analysis(str(result.attrs["analysis"]))
            found[name] = out or saved
    return found


def _check(names: Sequence[str] | None, given: dict[str, Any], out: Path | None) -> None:
    unknown = [name for name in names or () if name not in ANALYSES]
    if unknown:
        raise RequestError(
            f"unknown analysis {', '.join(unknown)}; there are {', '.join(ANALYSES)}"
        )
    if "depth_score" in (names or ()) and given["field"] is None:
        raise RequestError(
            "depth_score needs --level FIELD, the field of documents.parquet that holds the level"
        )
    if "probes" in (names or ()) and given["label"] is None:
        raise RequestError(
            "probes need --label COLUMN, the column of documents or tokens that they predict"
        )
    if out is not None and len(names or ()) != 1:
        raise RequestError("--out takes the result of one analysis: name one")


def _available(run: Run, name: str, given: dict[str, Any]) -> bool:
    """Whether an analysis that was not asked for by name can be run."""
    needed = _NEEDED[given["source"]]
    if name in _BY_NAME:
        return False
    if name == "depth":
        return all(run.has(array) for array in needed.values())
    if name == "geometry":
        return given["source"] == "activations" and run.has("residual")
    if name == "probes":
        return given["label"] is not None and run.has("residual")
    if name in needed:
        return run.has(needed[name])
    if name == "depth_score":
        return given["field"] is not None
    kind, named = _KINDS[name], given["effects"]
    others = {k for k in _KINDS.values() if k != kind}
    if any(named in effects_names(run.snapshots[0].root, other) for other in others):
        return False
    if named is not None and kind == "layers":
        return True  # Of no kind at all: interactions says so.
    try:
        open_effects(run, named, partial=given["partial"], kind=kind)
    except RequestError:
        return False
    return True
