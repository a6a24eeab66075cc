"""The command `analyze`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from depthscope.storage.errors import RequestError

from .analyze_spec import AnalyzeSpec
from .options import options_of, resolve
from .progress import Silent
from .step_progress import Steps


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1)
@options_of(AnalyzeSpec)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def analyze(
    store: Path,
    names: tuple[str, ...],
    config: Path | None,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> int:
    """Reduce a store to results; more stores may follow, which are reduced alike.

    NAMES are contributions, lens, depth, interactions, depth_score, geometry, probes, onset, flips,
    tuned_lens. Without NAMES, all for which the store has what they need; those that read every
    stored activation (geometry, onset, flips, tuned_lens) are only run by name.
    """
    spec = AnalyzeSpec(**resolve(AnalyzeSpec, config, given))
    stores, chosen = _stores(store, names)
    if spec.out is not None and len(stores) > 1:
        raise RequestError("--out takes the result of one store: name one")
    with _dashboard_told(quiet), _shared_client(spec):
        found = {str(one): _reduced(one, chosen, spec, quiet) for one in stores}
    table = _depth_ratios(found)
    if as_json:
        depth = {} if table is None else {"depth": table.to_dict("records")}
        several = {"stores": found, **depth}
        print(json.dumps(several if len(stores) > 1 else found[str(store)]))
        return 0
    for results in found.values():
        print("\n".join(f"{name}: {path}" for name, path in results.items()))
    if table is not None:
        print("Effective depth, (depth + 1) / layers by rule:")
        print(table.to_string(index=False))
    return 0


def _reduced(store: Path, names: tuple[str, ...], spec: AnalyzeSpec, quiet: bool) -> dict[str, str]:
    """Where each result of a store lies."""
    from depthscope.analysis import analyze as reduce

    steps = None if quiet else Steps()
    results = reduce(
        store,
        names or None,
        source=spec.source,
        effects=spec.effects,
        partial=spec.partial,
        field=spec.level,
        order=_labels(spec.levels),
        part=spec.part,
        tokens=spec.tokens,
        kl_share=spec.kl_share,
        overlap_least=spec.overlap_least,
        memory=None if spec.memory is None else int(spec.memory),
        label=spec.label,
        labels=_labels(spec.labels),
        pool=spec.pool,
        folds=spec.folds,
        by=spec.by,
        target=spec.target,
        lens=spec.lens,
        ranks=_numbers(spec.ranks),
        frequencies=spec.frequencies,
        answer=spec.answer,
        training=_training(spec),
        device=spec.device,
        resamples=spec.resamples,
        seed=spec.seed,
        level=spec.confidence,
        out=spec.out,
        report=(Silent() if steps is None else steps).message,
        progress=steps,
    )
    if steps is not None:
        steps.close()
    return {name: str(path) for name, path in results.items()}


def _stores(store: Path, names: tuple[str, ...]) -> tuple[list[Path], tuple[str, ...]]:
    """Stores and names of analyses: a folder that is no analysis is a store."""
    from depthscope.analysis import ANALYSES

    more = [name for name in names if name not in ANALYSES and Path(name).is_dir()]
    stores = list(dict.fromkeys([store, *map(Path, more)]))
    return stores, tuple(name for name in names if name not in more)


def _depth_ratios(found: dict[str, dict[str, str]]) -> Any:
    """Ratios of effective depth of several stores as a table; None for one."""
    from depthscope.analysis import open_result, ratio_table

    depths = {store: open_result(Path(one["depth"])) for store, one in found.items()
              if "depth" in one}  # fmt: skip
    return ratio_table(depths) if len(depths) > 1 else None


@contextmanager
def _dashboard_told(quiet: bool) -> Iterator[None]:
    """Print the address of Dask's dashboard where a cluster is started."""
    log = logging.getLogger("depthscope.analysis.client")
    handler, before = logging.StreamHandler(sys.stderr), log.level
    if not quiet:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


@contextmanager
def _shared_client(spec: AnalyzeSpec) -> Iterator[None]:
    """One Dask client for all analyses of all stores."""
    from depthscope.analysis.client import compute_on

    with compute_on(spec.where()):
        yield


def _labels(text: str | None) -> list[str] | None:
    return None if text is None else [label.strip() for label in text.split(",")]


def _training(spec: AnalyzeSpec) -> Any:
    """How to train a tuned lens."""
    from depthscope.analysis import LensSettings

    return LensSettings(
        steps=spec.steps,
        batch_rows=spec.batch_rows,
        optimizer=spec.optimizer,
        learning_rate=spec.learning_rate,
    )


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise RequestError(f"--ranks {text}: give whole numbers joined by commas") from None
