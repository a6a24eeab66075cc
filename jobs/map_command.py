"""The command `map`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from depthscope.storage.errors import RequestError

from .map_spec import MapSpec
from .options import options_of, resolve
from .progress import Silent, progress_for_terminal, ticks


@click.command("map")
@click.argument("source_store", type=click.Path(path_type=Path))
@click.argument("target_store", type=click.Path(path_type=Path))
@options_of(MapSpec)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def map_stores(
    source_store: Path,
    target_store: Path,
    config: Path | None,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> int:
    """Fit the best linear map from every point of one store to every point of another."""
    import depthscope.analysis as analysis
    from depthscope.analysis.figures import save_png

    spec = MapSpec(**resolve(MapSpec, config, given))
    optional = {} if spec.ridge is None else {"ridges": _numbers(spec.ridge, "--ridge", float)}
    progress = Silent() if quiet else progress_for_terminal()
    result = analysis.linear_maps(
        analysis.open(source_store),
        analysis.open(target_store),
        out=spec.out,
        source_points=_points(spec.source_points, "--source-points"),
        target_points=_points(spec.target_points, "--target-points"),
        token_set=spec.tokens,
        massive=spec.massive,
        rank=spec.rank,
        validation=spec.validation,
        test=spec.test,
        pairing=spec.pairing,
        least_shared=spec.least_shared,
        seed=spec.seed,
        resamples=spec.resamples,
        level=spec.confidence,
        memory=None if spec.memory is None else int(spec.memory),
        device=spec.device,
        scratch=spec.scratch,
        progress=ticks(progress),
        **optional,
    )
    progress.close()
    figures = [spec.out.with_name(f"{spec.out.stem}_{chart.name}.png")
               for chart in result.depthscope.charts()]  # fmt: skip
    for path, chart in zip(figures, result.depthscope.charts(), strict=True):
        save_png(chart, path)
    for sentence in analysis.map_findings(result):
        progress.message(sentence)
    content = {"out": str(spec.out), "figures": [str(path) for path in figures]}
    print(json.dumps(content) if as_json else "\n".join([str(spec.out), *content["figures"]]))
    return 0


def _points(text: str | None, option: str) -> list[int] | None:
    return None if text in (None, "all") else _numbers(str(text), option, int)


def _numbers(text: str, option: str, kind: Any) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise RequestError(f"{option} {text}: write numbers joined by commas") from None
