"""`depthscope report`: stores in, one self-contained page and its figures out.

Results that are saved in a store for the same inputs are used; others are computed and saved there,
or only in memory where the store cannot be written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex

import xarray as xr
from depthscope.storage.errors import RequestError

from .contributions import contributions
from .figures import save_png
from .lens import lens
from .report_facts import CommitCounts, facts, model_label, notes
from .report_page import StoreReport, compared_charts, render_page
from .report_results import (
    computed,
    depth_of,
    depth_score_of,
    interactions_of,
    saved_results_of,
    token_effects_of,
)
from .report_tables import file_stem
from .store import Run, open
from .token_views import token_views

#: Bytes of per-token values in the page, for all stores together.
VIEW_BYTES = 2_000_000


@dataclass(frozen=True)
class ReportPaths:
    """What was written.

    Attributes
    ----------
    page
        The HTML page.
    figures
        The PNG files, in the folder beside it that has its name and ``_figures``.
    """

    page: Path
    figures: tuple[Path, ...]


def write_report(
    stores: Sequence[Path],
    out: Path,
    *,
    documents: int = 8,
    tokens: int = 160,
    seed: int = 0,
    report: Callable[[str], None] | None = None,
) -> ReportPaths:
    """Write a page about one or several stores, and its figures as PNG files beside it.

    Parameters
    ----------
    stores
        Folders of stores; of different models, too, which are then laid over each other by
        relative depth.
    out
        The page; it appears whole or not at all.
    documents, tokens
        At most so many documents of a store are shown token by token, and so many tokens of each.
    seed
        Decides which documents.
    report
        Called with a line of text before each step.

    Raises
    ------
    RequestError
        A folder is no store, a store has nothing committed or nothing to show, or ``out`` cannot
        be written.
    """
    say = report or (lambda _: None)
    runs = [open(store) for store in stores]
    if not runs:
        raise RequestError("no store was named; give at least one folder")
    content = []
    for run, label in zip(runs, _labels(runs), strict=True):
        say(f"report: reading {label}")
        budget = VIEW_BYTES // len(runs)
        content.append(_read(run, label, documents, tokens, seed, budget))
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figures = _save_figures(content, out.with_name(f"{out.stem}_figures"), say)
        say(f"report: writing {out}")
        _publish(out, render_page(content, created))
    except OSError as error:
        raise RequestError(f"{out} cannot be written: {error.strerror or error}") from error
    return ReportPaths(out, figures)


def _read(run: Run, label: str, documents: int, tokens: int, seed: int, budget: int) -> StoreReport:
    root = run.snapshots[0].root
    if not run.snapshots[0].complete:
        raise RequestError(f"{root} has nothing committed yet: run extract to its end first")
    found = _result(run, contributions, "norm_ratio"), _result(run, lens, "kl")
    matrix, more_notes = interactions_of(run)
    by_token = token_effects_of(run, "erase"), token_effects_of(run, "gradients")
    saved, saved_notes = saved_results_of(run)
    if not saved and all(result is None for result in (matrix, *by_token, *found)):
        raise RequestError(
            f"{root} has neither statistics, lens values, effects nor results: extract with one of "
            "the former, run depthscope intervene, or depthscope analyze by name"
        )
    counts = CommitCounts.of(root)
    return StoreReport(
        label,
        facts(run, counts),
        (*notes(run, counts, found), *more_notes, *saved_notes),
        *found,
        token_views(run, documents, tokens, seed, budget),
        depth_of(run),
        matrix,
        depth_score_of(run),
        *by_token,
        saved,
    )


def _result(run: Run, analysis: Callable[..., xr.Dataset], needed: str) -> xr.Dataset | None:
    if not run.has(needed) or not len(run.stored(needed).axis):
        return None
    return computed(analysis, run)


def _labels(runs: Sequence[Run]) -> list[str]:
    """The models' names; with the stores' folders where two are of one model."""
    models = [model_label(run.snapshots[0].record) for run in runs]
    named = [
        f"{model} ({run.snapshots[0].root.name})" if models.count(model) > 1 else model
        for model, run in zip(models, runs, strict=True)
    ]
    return [
        f"{label} [{number}]" if named.count(label) > 1 else label
        for number, label in enumerate(named, 1)
    ]


def _save_figures(
    content: Sequence[StoreReport], folder: Path, say: Callable[[str], None]
) -> tuple[Path, ...]:
    charts = {chart.name: chart for chart in compared_charts(content)}
    for one in content:
        prefix = f"{file_stem(one.label)}_" if len(content) > 1 else ""
        charts |= {f"{prefix}{chart.name}": chart for chart in one.charts}
    say(f"report: drawing {len(charts)} figures")
    paths = []
    for name, chart in charts.items():
        path = folder / f"{name}.png"
        save_png(chart, path)
        paths.append(path)
    return tuple(paths)


def _publish(out: Path, page: str) -> None:
    temporary = out.with_name(f".{out.name}.{token_hex(6)}")
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
