"""Training the translators of a tuned lens from stored residuals, a group of points at a time.

A group's translators, gradients, optimizer state and moments fit the memory that is allowed. Each
begins as the better of two, on validation rows: no translation at all (the logit lens), or the best
affine map (``lens_start``); is trained (``lens_descent``); and is kept where it is better than what
it began as. The state is written now and then, so a training that is killed goes on where it was,
and a point that is done is never trained again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
from depthscope.storage.errors import RequestError
from depthscope.storage.head import Head
from depthscope.storage.shard_reader import widen
from numpy.typing import NDArray
from safetensors.numpy import load_file

from .lens_descent import Descent, LensDevice, Recipe
from .lens_rows import Draws, Ints, LensRows
from .lens_start import Start, closed_form
from .map_plan import SLACK, held_now
from .map_rows import ahead
from .products import products_on
from .stored_arrays import StoredArray
from .translators import Translators, read_header, write_tensors

Float32 = NDArray[np.float32]

#: Seconds between two writings of an unfinished training.
KEEP_SECONDS = 60.0
#: Validation rows on which translators are compared.
VALIDATION_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Training:
    """What translators are trained from.

    Attributes
    ----------
    residual, points
        The residual stream, and the numbers of all its points; the last is the final one.
    rows
        What to train and to validate on.
    head
        Final norm and unembedding.
    recipe
        How to train.
    massive, seed
        Rows that are left out of the closed form (see ``lens_start``); seed of the batches.
    device
        A torch device; None for the processor.
    memory
        Bytes that the process may hold; None for half of what is free.
    """

    residual: StoredArray
    points: tuple[int, ...]
    rows: LensRows
    head: Head
    recipe: Recipe
    massive: float
    seed: int
    device: str | None
    memory: int | None

    def run(self, translators: Translators, progress: Callable[[int, int], None] | None) -> None:
        """Train every translator that is not trained yet.

        Raises
        ------
        RequestError
            The device cannot be used, or the memory is not enough for one point.
        """
        todo = [at for at, p in enumerate(self.points[:-1]) if not translators.has(p)]
        if not todo:
            return
        allowed = self.memory or psutil.virtual_memory().available // 2
        device = LensDevice(self.head, self.device or "cpu")
        size = self._group_size(allowed)
        groups = [tuple(todo[first : first + size]) for first in range(0, len(todo), size)]
        total = len(groups) * self.recipe.steps
        for number, group in enumerate(groups):
            before = number * self.recipe.steps

            def tick(step: int, before: int = before) -> None:
                if progress is not None:
                    progress(before + step, total)

            _Group(self, device, group, translators).train(allowed, tick)

    def _group_size(self, allowed: int) -> int:
        """Points that are trained together."""
        hidden = int(self.residual.shape[-1])
        # A translator with its gradient and two moments; beforehand its sums and factors.
        one = 32 * hidden * hidden + 8 * VALIDATION_ROWS * hidden
        one += 8 * self.recipe.batch_rows * hidden
        budget = allowed - held_now() - SLACK - 4 * 8 * hidden * hidden
        if budget < one:
            least = allowed - budget + one
            raise RequestError(
                f"a tuned lens of {hidden} dimensions needs at least {least / 1e9:.1f} GB, and "
                f"{allowed / 1e9:.1f} GB are allowed: give --memory"
            )
        return int(budget // one)


class _Group:
    """Translators that are trained together."""

    def __init__(
        self,
        training: Training,
        device: LensDevice,
        group: tuple[int, ...],
        translators: Translators,
    ) -> None:
        self._t, self._device, self._at, self._kept = training, device, group, translators
        self._names = tuple(training.points[at] for at in group)
        rows = training.rows.validation
        step = max(1, len(rows) // VALIDATION_ROWS)
        held = self._read(rows[::step][:VALIDATION_ROWS])
        self._validation = device.put(held[:-1]), device.put(held[-1])

    def train(self, allowed: int, tick: Callable[[int], None]) -> None:
        """Train and save them."""
        recipe = self._t.recipe
        starts, facts = self._starts(allowed)
        weights, biases = (np.stack([getattr(s, n) for s in starts]) for n in ("weight", "bias"))
        descent = Descent(self._device, weights, biases, recipe)
        first = self._resume(descent)
        kept = time.monotonic()
        for step, held in self._batches(first):
            descent.step(step, held[:-1], held[-1])
            tick(step + 1)
            if time.monotonic() - kept >= KEEP_SECONDS:
                self._keep(descent, step + 1)
                kept = time.monotonic()
        after = self._divergences(descent.translate)
        for number, (point, start) in enumerate(zip(self._names, starts, strict=True)):
            better = bool(after[number] < float(facts[number]["kl_start"]))
            chosen = (
                (
                    self._device.get(descent.weights[number]),
                    self._device.get(descent.biases[number]),
                )
                if better
                else (start.weight, start.bias)
            )
            said = {**facts[number], "kl_trained": repr(float(after[number])),
                    "kept": "trained" if better else "start"}  # fmt: skip
            self._kept.save(point, *chosen, said)
        self._kept.unfinished.unlink(missing_ok=True)

    def _starts(self, allowed: int) -> tuple[list[Start], list[dict[str, str]]]:
        """Where to begin, and what the validation rows say about it."""
        t = self._t
        found = closed_form(
            t.residual, self._names, self._at, len(t.points) - 1, t.rows, t.massive,
            products_on(t.device), allowed, t.seed,
        )  # fmt: skip
        put = self._device.put
        placed = [(put(start.weight), put(start.bias)) for start in found]

        def translate(number: int, rows: Any) -> Any:
            weight, bias = placed[number]
            return rows + rows @ weight.T + bias

        plain = self._divergences(lambda _, rows: rows)
        fitted = self._divergences(translate)
        starts, facts = [], []
        for number, start in enumerate(found):
            use = bool(fitted[number] < plain[number])
            nothing = Start(np.zeros_like(start.weight), np.zeros_like(start.bias), np.inf)
            starts.append(start if use else nothing)
            facts.append(
                {
                    "point": str(self._names[number]),
                    "start": "least squares" if use else "logit lens",
                    "ridge": repr(start.ridge),
                    "kl_logit_lens": repr(float(plain[number])),
                    "kl_start": repr(float(min(fitted[number], plain[number]))),
                }
            )
        return starts, facts

    def _divergences(self, translate: Callable[[int, Any], Any]) -> NDArray[np.float64]:
        found = self._device.divergences(*self._validation, translate, backward=False)
        # A value that is not finite is worse than any.
        values: NDArray[np.float64] = found.cpu().numpy()
        return np.where(np.isfinite(values), values, np.inf)

    def _batches(self, first: int) -> Iterator[tuple[int, Float32]]:
        """The steps that are left, with their rows; the next are read while one is worked on."""
        recipe = self._t.recipe
        draws = Draws(self._t.rows.training, recipe.batch_rows, self._t.seed)
        return ahead(lambda step: (step, self._read(draws.batch(step))), range(first, recipe.steps))

    def _read(self, rows: Ints) -> Float32:
        """The group's points and the last, (point, rows, hidden), without rows that are broken."""
        residual = self._t.residual
        places = [*self._at, len(self._t.points) - 1]
        held = np.stack([widen(residual[at, rows, slice(None)]) for at in places])
        return held[:, np.isfinite(held).all(axis=(0, 2))]

    def _key(self) -> str:
        return f"{self._kept.key}:{','.join(map(str, self._names))}"

    def _keep(self, descent: Descent, step: int) -> None:
        facts = {"key": self._key(), "step": str(step)}
        write_tensors(self._kept.unfinished, descent.state(), facts)

    def _resume(self, descent: Descent) -> int:
        """Take up an unfinished training of this group, and say which step is next."""
        facts = read_header(self._kept.unfinished)
        if facts.get("key") != self._key():
            return 0
        descent.restore(load_file(self._kept.unfinished))
        return int(facts["step"])
