"""Other ways to maps from one point to several: gradient descent as published, and numpy."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from depthscope.analysis.row_pairs import pair_rows
from depthscope.analysis.shared_documents import share_documents
from depthscope.storage.shard_reader import widen
from numpy.typing import NDArray

Values = NDArray[np.float32]

#: The recipe of the paper's code, but for the size of a batch.
RATE, WARM_UP, DECAY, CLIP, STEPS, BATCH = 2.5e-4, 200, 0.01, 0.25, 10_000, 2048


@dataclass(frozen=True)
class Parts:
    """Training and test rows of one source, (rows, d), and of all targets, (rows, T, width)."""

    x: tuple[Values, Values]
    y: tuple[Values, Values]


@dataclass(frozen=True)
class Reached:
    """How gradient descent ended."""

    seconds: float
    error: float
    reached: bool


def values_of(a: Any, b: Any, point: int, targets: Sequence[int]) -> Parts:
    """The rows that maps are trained and tested on, read into memory."""
    shared = share_documents(a, b)
    pairs = pair_rows(a, b, shared, "content", "auto")
    part = shared.parts(0.1, 0.1, 0)[pairs.document]
    split = part == 0, part == 2

    def read(run: Any, place: int, rows: Any) -> Values:
        return np.asarray(widen(run.stored("residual")[place, rows, slice(None)]))

    x = [read(a, a.points.index(point), pairs.source[rows]) for rows in split]
    y = [
        np.stack([read(b, b.points.index(t), pairs.target[rows]) for t in targets], axis=1)
        for rows in split
    ]
    return Parts((x[0], x[1]), (y[0], y[1]))


def relative_error(guess: Values, truth: Values) -> float:
    """Mean over rows and targets of ‖y - ŷ‖ / ‖y‖."""
    return float((np.linalg.norm(truth - guess, axis=2) / np.linalg.norm(truth, axis=2)).mean())


def least_squares(parts: Parts, _: float) -> float:
    """Seconds of numpy.linalg.lstsq in float64, target by target, with an intercept."""
    start = time.perf_counter()
    x = np.column_stack([parts.x[0], np.ones(len(parts.x[0]))]).astype(np.float64)
    for target in range(parts.y[0].shape[1]):
        np.linalg.lstsq(x, parts.y[0][:, target].astype(np.float64), rcond=None)
    return time.perf_counter() - start


def adamw(parts: Parts, goal: float, most: float, threads: int) -> Reached:
    """Train until the held-out error is within 1% of the goal, or for so many seconds."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x, y = (torch.from_numpy(v[0]).flatten(1) for v in (parts.x, parts.y))
    model = torch.nn.Linear(x.shape[1], y.shape[1])
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _rate)
    start, checking, error = time.perf_counter(), 0.0, math.inf
    for step in range(STEPS):
        rows = torch.randint(len(x), (BATCH,))
        loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        schedule.step()
        spent = time.perf_counter() - start - checking
        if step % 25 == 24 or spent > most:
            before = time.perf_counter()
            with torch.inference_mode():
                guess = model(torch.from_numpy(parts.x[1])).reshape(parts.y[1].shape).numpy()
            error = relative_error(guess, parts.y[1])
            checking += time.perf_counter() - before
            if error <= 1.01 * goal or spent > most:
                return Reached(spent, error, error <= 1.01 * goal)
    return Reached(time.perf_counter() - start - checking, error, False)


def _rate(step: int) -> float:
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    done = (step - WARM_UP) / (STEPS - WARM_UP)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))
