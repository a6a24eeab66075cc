"""What surrounds the layers, measured alone: matrix products, copies, statistics, lens values."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from depthscope.storage.head import Head
from torch import Tensor, nn

from .costs import ModelCosts
from .description import DTYPES
from .lens import LensMeasure
from .statistics import Scratch, layer_statistics
from .workload import Selection

#: Of the sample of lens values: rows, points, and about how many FLOPs.
_LENS_ROWS, _LENS_POINTS, _LENS_FLOPS = 256, 5, 8e10
_LENS_VOCABULARY = (8192, 65536)


def product_rate(rows: int, out: int, inside: int, dtype: torch.dtype) -> float:
    """GFLOP/s of (rows × in)·(in × out); of a very wide map, a part of it."""
    out = min(out, max(256, (128 << 20) // inside))
    values, weight = torch.randn(rows, inside).to(dtype), torch.randn(out, inside).to(dtype)
    nn.functional.linear(values, weight)
    taken: list[float] = []
    while sum(taken) < 0.15 and len(taken) < 20:
        started = time.perf_counter()
        nn.functional.linear(values, weight)
        taken.append(time.perf_counter() - started)
    return 2 * rows * out * inside / float(np.median(taken)) / 1e9


def plane_seconds(costs: ModelCosts, selection: Selection, rows: int) -> float:
    """Of copying one row of a plane into a block of stored rows."""
    source = torch.zeros(rows, costs.hidden, dtype=DTYPES[costs.dtype])
    block = torch.zeros(16, rows, costs.hidden, dtype=DTYPES[selection.store_dtype])
    return _timed(lambda: [plane.copy_(source) for plane in block]) / (16 * rows)


def statistics_seconds(costs: ModelCosts, rows: int) -> float:
    """Of one row's statistics of one layer, in micro-batches of so many rows."""
    dtype, scratch = DTYPES[costs.dtype], Scratch()
    h, a, m = (torch.randn(rows, costs.hidden).to(dtype) for _ in range(3))
    return _timed(lambda: layer_statistics(h, a, m, scratch)) / rows


def lens_seconds(costs: ModelCosts) -> float:
    """Of one row at all points; a large vocabulary is measured in part."""
    least, most = _LENS_VOCABULARY
    wanted = int(_LENS_FLOPS / (2 * _LENS_ROWS * _LENS_POINTS * costs.hidden))
    vocabulary = min(costs.vocabulary, max(least, min(most, wanted)))
    draw = np.random.default_rng(0)
    # Logits spread as a model's do: wider ones would leave numbers too small for fast arithmetic.
    unembedding = draw.standard_normal((vocabulary, costs.hidden), np.float32)
    unembedding *= 3 / costs.hidden**0.5
    head = Head("rmsnorm", 1e-6, np.ones(costs.hidden, np.float32), unembedding)
    measure = LensMeasure(head, 128 << 20)
    points: Tensor = torch.randn(_LENS_POINTS, _LENS_ROWS, costs.hidden)
    seconds = _timed(lambda: measure.measure(points, torch.zeros(_LENS_ROWS, dtype=torch.int64)))
    per_point = seconds / (len(points) * _LENS_ROWS) * costs.vocabulary / vocabulary
    return per_point * (len(costs.layers) + 1)


def _timed(work: Callable[[], object]) -> float:
    """Median seconds of three calls, after one that warms up."""
    work()
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))
