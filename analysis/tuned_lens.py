"""The tuned lens: what every point predicts once it is translated into the last point's terms.

An affine translator per point, h + A·h + b, is trained from the store so that the final norm and
unembedding make the final distribution of it: a logit lens that does not take a change of basis for
ignorance. It is evaluated on documents that it has never seen, beside the logit lens on the same
rows. Source: Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned
Lens".
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from depthscope.storage.errors import RequestError
from depthscope.storage.head import Head
from numpy.typing import NDArray

from .last_point import residual_to_the_last
from .lens import MEASURES as LENS
from .lens import ResidualLogits, compare_with_last
from .lens_descent import RATES, Optimizer, Recipe
from .lens_rows import LensRows
from .lens_training import Training
from .logits import HeadLogits
from .results import Provenance, result_place
from .rows import Piece
from .store import Run
from .summary import Measure, Settings, Summary
from .translators import Translators

#: Raised whenever translators change for the same inputs.
REVISION = 1

_LOSS = Measure("KL divergence of the final from the point's distribution", "nat", interval=True)
MEASURES = {
    **LENS,
    "loss": _LOSS,
    **{f"logit_{name}": replace(m, meaning=f"logit lens: {m.meaning}") for name, m in LENS.items()},
    "logit_loss": replace(_LOSS, meaning=f"logit lens: {_LOSS.meaning}"),
}


@dataclass(frozen=True)
class LensSettings:
    """How a tuned lens is trained.

    Attributes
    ----------
    steps, batch_rows
        Steps of the descent, and rows of each; no steps leave the closed form.
    optimizer
        ``adamw``, or ``sgd`` for the published recipe (Nesterov, weight decay 0.001).
    learning_rate
        None for 0.001 with adamw and 0.1 with sgd.
    validation, test
        Shares of the documents.
    massive
        Rows whose norm at any point exceeds so many times that point's median are left out of the
        closed form; 0 keeps them.
    """

    steps: int = 100
    batch_rows: int = 1024
    optimizer: Optimizer = "adamw"
    learning_rate: float | None = None
    validation: float = 0.1
    test: float = 0.1
    massive: float = 20.0

    def check(self) -> None:
        """Refuse what cannot be.

        Raises
        ------
        RequestError
            A value is out of range.
        """
        if self.optimizer not in RATES:
            raise RequestError(f"unknown optimizer {self.optimizer!r}; use {' or '.join(RATES)}")
        if self.steps < 0 or self.batch_rows < 1:
            raise RequestError("steps must not be negative, and a batch needs at least one row")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise RequestError(f"learning rate {self.learning_rate:g} must be positive")
        if self.validation <= 0 or self.test <= 0 or self.validation + self.test >= 1:
            raise RequestError(
                f"validation {self.validation:g} and test {self.test:g} must be positive and leave "
                "documents to train on"
            )
        if self.massive < 0:
            raise RequestError(f"massive {self.massive:g} must not be negative; 0 keeps all rows")


def tuned_lens(
    run: Run,
    training: LensSettings | None = None,
    *,
    device: str | None = None,
    memory: int | None = None,
    **settings: Any,
) -> xr.Dataset:
    """Train a tuned lens, and compare it with the logit lens on held-out documents.

    Parameters
    ----------
    run
        From ``open``, with stored residuals and their last point; a selection by ``where`` is
        respected.
    training
        How to train; None for the defaults.
    device
        A torch device such as ``cuda``; None for the processor.
    memory
        Bytes that the process may hold while it trains; None for half of what is free.
    settings
        Fields of ``Settings``: resamples, seed, level, out, scheduler, workers, progress.

    Returns
    -------
    xarray.Dataset
        Axes token_set, point: kl_mean, kl_low, kl_high, top5_overlap_mean, top1_agreement_mean,
        entropy_mean as for ``lens``; loss_mean, loss_low, loss_high, the divergence in the other
        direction, which is trained; the same with the prefix ``logit_`` for the logit lens; count
        (token_set), held-out rows. The translators are saved beside the result, in the folder
        ``tuned_lens.translators``.

    Raises
    ------
    RequestError
        The store lacks residuals, their last point or the head; there are fewer than three
        documents; the device cannot be used, or the memory is too little.
    """
    chosen, lens = Settings(**settings), training or LensSettings()
    lens.check()
    residual = residual_to_the_last(run, "there is nothing to tune a lens to")
    head = Head.load(run.snapshots[0].root)
    rate = RATES[lens.optimizer] if lens.learning_rate is None else lens.learning_rate
    parameters = {**asdict(lens), "learning_rate": rate, "revision": REVISION,
                  "points": list(run.points)}  # fmt: skip
    summary = Summary(
        "tuned_lens", {"point": np.array(run.points, dtype=np.int64)}, MEASURES, parameters
    )
    found = summary.saved(run, chosen)
    if found is not None:
        return found
    rows = LensRows.of(run, residual.axis, lens.validation, lens.test, chosen.seed)
    key = Provenance.of(run, "translators", {**parameters, "seed": chosen.seed}).fingerprint
    recipe = Recipe(lens.steps, lens.batch_rows, lens.optimizer, rate)
    work = Training(residual, run.points, rows, head, recipe, lens.massive, chosen.seed,
                        device, memory)  # fmt: skip
    with _folder(run, chosen) as folder:
        translators = Translators(folder, key)
        work.run(translators, chosen.progress)
        held_out = run.at(rows.test).stored("residual")
        values = LensValues(held_out, HeadLogits(run.snapshots[0].root), translators, run.points)
        summary = replace(summary, attributes=_said(run, translators, rows))
        return summary.result(run, values, chosen)


@contextmanager
def _folder(run: Run, settings: Settings) -> Iterator[Path]:
    """Where the translators go: beside the result, or nowhere for a view."""
    place = result_place(run, "tuned_lens", settings.out)
    if place is not None:
        yield place.with_suffix(".translators")
        return
    with tempfile.TemporaryDirectory(prefix="depthscope-") as scratch:
        yield Path(scratch)


def _said(run: Run, translators: Translators, rows: LensRows) -> dict[str, Any]:
    """What the training found, by point, and what it saw."""
    facts = [translators.facts(point) for point in run.points[:-1]]
    return {
        "layers": run.layers,
        "training_documents": rows.documents[0],
        "validation_documents": rows.documents[1],
        "training_rows": len(rows.training),
        "translators_start": [fact["start"] for fact in facts],
        "translators_kept": [fact["kept"] for fact in facts],
    }


@dataclass(frozen=True, eq=False)
class LensValues(ResidualLogits):
    """Values of both lenses, computed from the stored residuals of held-out rows."""

    translators: Translators
    points: tuple[int, ...]

    names = tuple(MEASURES)

    def read(self, piece: Piece) -> NDArray[Any]:
        """(10, point, rows) float32."""
        h = np.array(self.residual.read(piece, as_float32=True))
        plain = self._values(h)
        for number, point in enumerate(self.points[:-1]):
            h[number] = self.translators.apply(point, h[number])
        return np.concatenate([self._values(h), plain])

    def _values(self, h: NDArray[np.float32]) -> NDArray[np.float32]:
        """The five values of one lens, (5, point, rows)."""
        logits = self.logits(h)
        found = compare_with_last(logits)
        # The comparison leaves log-probabilities behind.
        final = np.exp(logits[-1])
        with np.errstate(invalid="ignore"):
            loss = [np.maximum((final * (logits[-1] - one)).sum(axis=-1), 0) for one in logits]
        loss_values = np.where(np.isnan(found[0]), np.nan, np.stack(loss))
        return np.concatenate([found, loss_values[None]]).astype(np.float32)
