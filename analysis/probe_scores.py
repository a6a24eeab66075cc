"""How many units every probe gets right: by class, by document, and in resamples of documents."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .poisson_bootstrap import PoissonBootstrap
from .probe_fit import TASKS, Float32, Probe
from .probe_units import Units
from .products import NumpyProducts

Float64 = NDArray[np.float64]


class Scores:
    """Units and correct predictions; parts can be merged.

    The first label is every class together.

    Parameters
    ----------
    points, classes
        How many there are of each.
    documents
        Numbers of the documents that take part.
    resamples, seed
        Of the bootstrap over documents.
    """

    def __init__(
        self, points: int, classes: int, documents: NDArray[np.int64], resamples: int, seed: int
    ) -> None:
        labels = 1 + classes
        self._documents = documents
        self.correct = np.zeros((TASKS, labels, points))
        self.count = np.zeros(labels)
        self.of_document = np.zeros((TASKS, len(documents), points), np.int32)
        self.units = np.zeros(len(documents), np.int32)
        # Counts travel as further sums: every task and point has the same.
        size = self.correct.size + labels
        self._draws = PoissonBootstrap(size, resamples=resamples, seed=seed, one_count=True)

    def add(
        self,
        units: Units,
        fold: NDArray[np.int8],
        mean: Float32,
        probes: tuple[tuple[tuple[Probe, Probe], ...], ...],
        by: NumpyProducts,
    ) -> None:
        """Predict units, each with the probes of its fold: ``probes[point][fold][task]``."""
        if not len(fold):
            return
        right = np.zeros((TASKS, len(probes), len(fold)), np.bool_)
        parts = [np.flatnonzero(fold == number) for number in range(len(probes[0]))]
        truths = units.label, units.control

        def predict(point: int) -> None:
            centred = units.x[point] - mean[point]
            for number, mine in enumerate(parts):
                for task, probe in enumerate(probes[point][number]):
                    found = (centred[mine] @ probe.weights + probe.bias).argmax(axis=1)
                    right[task, point, mine] = found == truths[task][mine]

        by.each(predict, range(len(probes)))
        at, place = np.unique(units.document, return_inverse=True)
        by_label = np.zeros((len(at), len(self.count), TASKS, len(probes)))
        counts = np.zeros((len(at), len(self.count)))
        for label in (np.zeros_like(units.label), 1 + units.label):
            np.add.at(counts, (place, label), 1)
            # By document and label first, as the two are indexed together.
            np.add.at(by_label, (place, label), right.transpose(2, 0, 1))
        sums = by_label.transpose(0, 2, 1, 3)
        self.correct += sums.sum(axis=0)
        self.count += counts.sum(axis=0)
        self.of_document[:, at] += sums[:, :, 0].transpose(1, 0, 2).astype(np.int32)
        self.units[at] += counts[:, 0].astype(np.int32)
        both = np.concatenate([sums.reshape(len(at), -1), counts], axis=1)
        self._draws.add(self._documents[at], both, np.zeros((len(at), 1)))

    def merge(self, other: Scores) -> None:
        """Add another's."""
        self.correct += other.correct
        self.count += other.count
        self.of_document += other.of_document
        self.units += other.units
        self._draws.merge(other._draws)

    def accuracy(self) -> Float64:
        """(task, label, point); NaN without units."""
        return _share(self.correct, self.count)

    def resampled(self) -> Float64:
        """(resample, task, label, point); none where fewer than two documents have units."""
        sums = self._draws.sums if (self.units > 0).sum() > 1 else self._draws.sums[:0]
        size = self.correct.size
        return _share(sums[:, :size].reshape(-1, *self.correct.shape), sums[:, None, size:])


def _share(correct: Float64, count: Float64) -> Float64:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(correct / count[..., None])
