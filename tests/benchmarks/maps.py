"""m. Linear maps between all points of two models."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import corpora
import depthscope.analysis as analysis
import gemma
import machine
import map_recipes
import xarray as xr
from depthscope.jobs import ExtractSpec, extract
from findings import Finding, Section
from scale import Setting
from synthetic import make_store, stored_bytes

METHOD = (
    "{sources} × {targets} pairs of points between {models}, {rows:,} training and held-out rows in"
    " bfloat16, paired by {rule}; every ridge, all baselines and intervals included. Work: products"
    " of rows with XᵀX (half), XᵀY and the maps, nothing else; the machine's rate is the better of"
    " numpy's and torch's float32 product of 3,072 × 3,072 matrices, before and after each run. One"
    " source: from point {point} to all targets; the recipe (Linear with bias to all targets, MSE,"
    " AdamW 2.5e-4, warm-up 200 steps, weight decay 0.01, clip 0.25; batches of 2,048 tokens, not"
    " 32,768, which makes it faster here) is stopped when its held-out error comes within 1% of"
    " ours, or after {most:.0f} times our time. Memory: another process, RssAnon + RssShmem every"
    " 20 ms, over synthetic stores of {gigabytes:.1f} GB, with memory of 4 GB allowed."
)

_MODELS = ("source_model", "target_model")
#: The recipe is stopped after so many times our time.
MOST = 110.0
GIB = 4 * 10**9


@dataclass(frozen=True)
class Size:
    """How much is run."""

    rows: int
    points: int | None
    large_rows: int
    rounds: int
    most: float


FULL, QUICK = Size(26000, None, 131072, 3, MOST), Size(3000, 4, 16384, 1, 2.0)


def run(setting: Setting) -> Section:
    """All pairs; one source against others; memory; growth."""
    size = FULL if setting.scale.rounds >= 5 else QUICK
    source, target = _stores(setting, size.rows)
    runs = analysis.open(source), analysis.open(target)
    points = [_some(run.points, size.points) for run in runs]
    chosen = {"source_points": points[0], "target_points": points[1], "memory": GIB}
    shares, rates, seconds = [], [], []
    for _ in range(size.rounds):
        before = machine.product_rate(setting.threads)
        start = time.perf_counter()
        result = analysis.linear_maps(*runs, **chosen)
        seconds.append(time.perf_counter() - start)
        rate = (before + machine.product_rate(setting.threads)) / 2
        rates.append(work(result, runs) / seconds[-1])
        shares.append(rates[-1] / rate)
    one = _one_source(runs, points, size, setting.threads)
    large = _large(setting, size)
    growth = _growth(runs, points, size)
    findings = [
        Finding("share of the machine's float32 product rate", shares, "×", "at least", 0.7),
        Finding("rate", [rate / 1e9 for rate in rates], "GFLOP/s"),
        Finding("time of all pairs", seconds, "s"),
        Finding("passes over the training rows", [result.attrs["training_passes"]], ""),
        *one,
        *large,
        Finding("time with 4× the rows over 4 × the time", growth, "×", "at most", 1.15),
    ]
    # Names, since a path says something of this machine only.
    facts = {**result.attrs, **{key: Path(result.attrs[key]).name for key in _MODELS}}
    return Section(
        "m",
        "Maps between models",
        METHOD.format(
            sources=result.sizes["source_point"],
            targets=result.sizes["target_point"],
            models=f"{facts['source_model']} and {facts['target_model']}",
            rows=facts["train_rows"] + facts["validation_rows"] + facts["test_rows"],
            rule={"tokens": "equal tokens", "offsets": "character offsets"}[facts["paired_by"]],
            point=_middle(points[0]),
            most=size.most,
            gigabytes=stored_bytes(setting.scratch / "large" / "a") / 1e9,
        ),
        findings,
        {"attributes": {k: v for k, v in facts.items() if isinstance(v, int | float | str)}},
    )


def work(result: xr.Dataset, runs: tuple[Any, Any]) -> float:
    """FLOP of the products that maps of these sizes cannot do without."""
    sources, targets = result.sizes["source_point"], result.sizes["target_point"]
    d, width = (int(run.residual.sizes["hidden"]) for run in runs)
    rows = [result.attrs[f"{part}_rows"] for part in ("train", "validation", "test")]
    return rows[0] * sources * d * d + 2.0 * sum(rows) * sources * targets * d * width


def _stores(setting: Setting, rows: int) -> tuple[Path, Path]:
    texts = corpora.write(setting.scratch / "texts.jsonl", corpora.choose(setting.model, rows))
    other = gemma.folder(setting.scratch)
    stores = []
    for name, model in (("a", setting.model), ("b", other)):
        if model is None:
            return stores[0], stores[0]
        spec = ExtractSpec(
            model=str(model),
            data=(str(texts),),
            out=setting.scratch / name,
            dtype="bfloat16",
            statistics=False,
            lens_rows="none",
            threads=setting.threads,
            workers=1,
            engine="process",
        )
        extract(spec)
        stores.append(spec.out)
    return stores[0], stores[1]


def _one_source(
    runs: tuple[Any, Any], points: list[list[int]], size: Size, threads: int
) -> list[Finding]:
    point = _middle(points[0])
    chosen = {"source_points": [point], "target_points": points[1]}
    ours = []
    for _ in range(3):
        start = time.perf_counter()
        result = analysis.linear_maps(*runs, **chosen)
        ours.append(time.perf_counter() - start)
    goal = float(result.relative_error.mean())
    values = map_recipes.values_of(*runs, point, points[1])
    direct = [map_recipes.least_squares(values, goal)]
    adam = map_recipes.adamw(values, goal, size.most * min(ours), threads)
    return [
        Finding("one source: ours, everything included", ours, "s"),
        Finding("one source: numpy.linalg.lstsq for every target, values in memory", direct, "s"),
        Finding(
            "one source: the recipe's time over ours, to the same held-out error"
            + ("" if adam.reached else f" (stopped at error {adam.error:.3f}, ours {goal:.3f})"),
            [adam.seconds / min(ours)],
            "×",
            "at least",
            100.0,
        ),
    ]


def _large(setting: Setting, size: Size) -> list[Finding]:
    folder = setting.scratch / "large"
    source = make_store(folder / "a", layers=30, rows=size.large_rows, hidden=576)
    target = make_store(folder / "b", layers=18, rows=size.large_rows, hidden=640, seed=1)
    settings = {"target_points": [0, 9, 18], "memory": GIB, "scratch": str(folder)}
    given = {"source": str(source), "target": str(target), "settings": settings}
    child = Path(__file__).with_name("map_child.py")
    command = [sys.executable, str(child), json.dumps(given)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return [
        Finding("peak memory where 4 GB are allowed", [found["peak"] / 1e9], "GB", "at most", 4.0),
        Finding("of a store of", [stored_bytes(source) / 1e9], "GB"),
        Finding("passes over its training rows", [found["passes"]], ""),
    ]


def _growth(runs: tuple[Any, Any], points: list[list[int]], size: Size) -> list[float]:
    documents = int(runs[0].sql("SELECT count(*) FROM documents").fetchall()[0][0])
    found = []
    for _ in range(size.rounds):
        taken = []
        for share in (4, 1):
            parts = [run.where(f"document < {documents // share}") for run in runs]
            start = time.perf_counter()
            analysis.linear_maps(
                *parts, source_points=points[0][:4], target_points=points[1][:4], least_shared=0
            )
            taken.append(time.perf_counter() - start)
        found.append(taken[1] / (4 * taken[0]))
    return found


def _some(points: tuple[int, ...], count: int | None) -> list[int]:
    return list(points) if count is None else list(points[:: max(1, len(points) // count)])[:count]


def _middle(points: list[int]) -> int:
    return points[len(points) // 2]
