"""What the branches of one task changed: reduced over positions on the worker, since no stored
activation can yield it later. Source: Csordás et al. 2025, section 4 (relative change of what a
layer adds; methods.md 1.3), denominators of at least 1e-6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from depthscope.storage.effects import EffectsRecord, EffectsTask
from depthscope.storage.effects_arrays import EFFECTS, NOISE, OUTPUTS, effects_plans
from numpy.typing import NDArray
from torch import Tensor

from .interventions import Branch
from .statistics import SMALLEST_NORM


class EffectTable:
    """Effects of a task's branches, float32, NaN where nothing was measured.

    Parameters
    ----------
    record, task
        The sweep, and which of its documents and sources.
    """

    def __init__(self, record: EffectsRecord, task: EffectsTask) -> None:
        documents = task.rows[1] - task.rows[0]
        sources = task.sources[1] - task.sources[0]
        labels = (len(record.scopes), len(record.kinds), len(record.parts))
        shape = (*labels, documents, record.splits, sources, record.layers)
        self.arrays = {name: np.full(shape, np.nan, np.float32) for name in EFFECTS}
        self.arrays |= {name: np.full(shape[:-1], np.nan, np.float32) for name in OUTPUTS}
        sizes = {"block": 1, "document": documents, "target": record.layers}
        for name, axes in NOISE.items():
            self.arrays[name] = np.full([sizes[axis] for axis in axes], np.nan, np.float32)
        self._first_source = task.sources[0]
        self._axes = _document_axes(record)

    def take(self, documents: tuple[int, int]) -> dict[str, Tensor]:
        """What was noted of some documents of the task (first and last, end excluded), by array."""
        return {
            name: torch.from_numpy(array[self._of(name, documents)])
            for name, array in self.arrays.items()
        }

    def put(self, documents: tuple[int, int], noted: Mapping[str, Tensor]) -> None:
        """Take over what another table noted of these documents."""
        for name, values in noted.items():
            self.arrays[name][self._of(name, documents)] = values.numpy()

    def _of(self, name: str, documents: tuple[int, int]) -> tuple[slice, ...]:
        return (*[slice(None)] * self._axes[name], slice(*documents))

    def _place(self, branch: Branch) -> tuple[int, ...]:
        scope, kind, part, split, source = branch.where
        return scope, kind, part, branch.document, split, source - self._first_source

    def effects(
        self, layer: int, base: Tensor, changed: Tensor, branches: Sequence[Branch]
    ) -> None:
        """Note how far what a layer adds was changed.

        Parameters
        ----------
        base, changed
            float32 (n, width, d): what the layer adds in the baseline, and in each branch.
        """
        ratio = relative_change(base, changed)
        largest, mean = over_positions(ratio, [branch.measures for branch in branches])
        for branch, most, average in zip(branches, largest, mean, strict=True):
            place = (*self._place(branch), layer)
            self.arrays["effect_max"][place] = most
            self.arrays["effect_mean"][place] = average

    def noise(self, layer: int, document: int, ratio: Tensor) -> None:
        """Note what a no-op changed, (width,)."""
        place = (0, document, layer)
        most = float(ratio.max())
        self.arrays["noise_effect_max"][place] = np.fmax(
            self.arrays["noise_effect_max"][place], most
        )

    def output_noise(self, document: int, distance: Tensor) -> None:
        """Note what a no-op changed of the output's probabilities, (positions,)."""
        place, most = (0, document), float(distance.max())
        self.arrays["noise_output_l2_max"][place] = np.fmax(
            self.arrays["noise_output_l2_max"][place], most
        )

    def outputs(self, branch: Branch, distance: Tensor, divergence: Tensor) -> None:
        """Note L2 of probabilities and KL at the branch's measured positions, (positions,)."""
        place = self._place(branch)
        self.arrays["output_l2_max"][place] = float(distance.max())
        self.arrays["output_l2_mean"][place] = float(distance.mean())
        self.arrays["output_kl_mean"][place] = float(divergence.mean())

    def named(self) -> Mapping[str, NDArray[np.float32]]:
        """The arrays by name."""
        return self.arrays


class ErasureTable(EffectTable):
    """What erasing the stream changes of the output: float32 (case, document, point, position).

    Source: Csordás et al. 2025, figure 6 (methods.md 1.7): the largest L2 distance of the
    next-token probabilities over the measured positions.
    """

    def __init__(self, record: EffectsRecord, task: EffectsTask) -> None:
        documents, points = task.rows[1] - task.rows[0], task.sources[1] - task.sources[0]
        shape = (len(record.scopes), documents, points, record.positions)
        self.arrays = {
            "output_l2": np.full(shape, np.nan, np.float32),
            "noise_output_l2_max": np.full((1, documents), np.nan, np.float32),
        }
        self._first_source = task.sources[0]
        self._axes = _document_axes(record)

    def effects(
        self, layer: int, base: Tensor, changed: Tensor, branches: Sequence[Branch]
    ) -> None:
        """Nothing: an erasure is measured at the output."""

    def noise(self, layer: int, document: int, ratio: Tensor) -> None:
        """Nothing: see `output_noise`."""

    def outputs(self, branch: Branch, distance: Tensor, divergence: Tensor) -> None:
        """Note the largest L2 distance over the branch's measured positions."""
        case, point, position = branch.where
        place = (case, branch.document, point - self._first_source, position)
        self.arrays["output_l2"][place] = float(distance.max())


def _document_axes(record: EffectsRecord) -> dict[str, int]:
    plans = effects_plans(record).items()
    return {name: plan.dimensions.index("document") for name, plan in plans}


def relative_change(base: Tensor, changed: Tensor) -> Tensor:
    """‖c − c'‖ / max(‖c‖, 1e-6) at every position; (…, width, d) float32 → (…, width)."""
    norms: Tensor = torch.linalg.vector_norm(base, dim=-1).clamp_min(SMALLEST_NORM)
    change: Tensor = torch.linalg.vector_norm(base - changed, dim=-1)
    return change / norms


def over_positions(ratio: Tensor, measures: Sequence[Tensor]) -> tuple[list[float], list[float]]:
    """Largest and mean value of every line (n, width) over its measured positions."""
    masks = torch.stack([mask.to(ratio.device) for mask in measures])
    counts = masks.sum(1)
    largest = ratio.masked_fill(~masks, -torch.inf).amax(1)
    mean = ratio.masked_fill(~masks, 0.0).sum(1, dtype=torch.float64) / counts
    return largest.cpu().tolist(), mean.cpu().tolist()
