"""The command `analyze`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from depthscope.storage.errors import RequestError

from .analyze_spec import AnalyzeSpec
from .options import options_of, resolve
from .progress import Silent, progress_for_terminal
from .slurm import dask_scheduler


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
    """Reduce a store to results.

    NAMES are contributions, lens, depth, interactions, depth_score, geometry, probes, onset, flips.
    Without NAMES, all for which the store has what they need; geometry, onset and flips, which read
    every stored activation, are only run by name.
    """
    from depthscope.analysis import analyze as reduce

    spec = AnalyzeSpec(**resolve(AnalyzeSpec, config, given))
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
        ranks=_numbers(spec.ranks),
        frequencies=spec.frequencies,
        answer=spec.answer,
        resamples=spec.resamples,
        seed=spec.seed,
        level=spec.confidence,
        out=spec.out,
        scheduler=dask_scheduler(spec.scheduler, spec.slurm_workers),
        report=(Silent() if quiet else progress_for_terminal()).message,
    )
    content = {name: str(path) for name, path in results.items()}
    lines = [f"{name}: {path}" for name, path in content.items()]
    print(json.dumps(content) if as_json else "\n".join(lines))
    return 0


def _labels(text: str | None) -> list[str] | None:
    return None if text is None else [label.strip() for label in text.split(",")]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise RequestError(f"--ranks {text}: give whole numbers joined by commas") from None
