"""Running several analyses by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths

from .contributions import Source, contributions
from .lens import lens
from .store import StorePath, open

#: Every analysis by name, in the order in which ``analyze`` runs them.
ANALYSES: dict[str, Callable[..., xr.Dataset]] = {"contributions": contributions, "lens": lens}

#: The array without which an analysis cannot be computed, by source and name.
_NEEDED = {
    "statistics": {"contributions": "norm_ratio", "lens": "kl"},
    "activations": {"contributions": "mlp_output", "lens": "residual"},
}


def analyze(
    store: StorePath,
    names: Sequence[str] | None = None,
    *,
    source: Source = "statistics",
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
        ``statistics`` or ``activations``.
    report
        Called with a line of text before and after each analysis.
    settings
        Fields of ``Settings``: resamples, seed, level, scheduler, workers, progress.

    Returns
    -------
    dict
        Where each result lies, by name.

    Raises
    ------
    RequestError
        An unknown name, or a named analysis of which the store lacks the arrays.
    """
    unknown = [name for name in names or () if name not in ANALYSES]
    if unknown:
        raise RequestError(
            f"unknown analysis {', '.join(unknown)}; there are {', '.join(ANALYSES)}"
        )
    run = open(store)
    chosen = names or [name for name in ANALYSES if run.has(_NEEDED[source][name])]
    say = report or (lambda _: None)
    found = {}
    for name in chosen:
        say(f"{name}: computing from {source}")
        result = ANALYSES[name](run, source, **settings)
        say(f"{name}: {int(result['count'].sel(token_set='all'))} rows")
        found[name] = StorePaths(run.snapshots[0].root).analysis(str(result.attrs["analysis"]))
    return found
