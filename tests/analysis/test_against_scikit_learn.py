"""Maps and probes against scikit-learn, where it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from depthscope.analysis.linear_maps import linear_maps
from depthscope.analysis.probes import probes
from depthscope.analysis.shared_documents import share_documents
from depthscope.analysis.store import open as open_store

from .paired_stores import store

linear_model = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
discriminant_analysis = pytest.importorskip("sklearn.discriminant_analysis")

LENGTHS = [4 + number % 9 for number in range(60)]
ROWS, D, WIDTH = sum(LENGTHS), 6, 5


def test_maps_are_its_ridge(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(2, ROWS, D)) * np.array([9, 1, 1, 0.1, 2, 1])
    y = np.tanh(x[:, :, :WIDTH]) + 0.3 * random.normal(size=(2, ROWS, WIDTH)) + 2
    a, b = store(tmp_path / "a", x, LENGTHS), store(tmp_path / "b", y, LENGTHS)
    runs = open_store(a.root), open_store(b.root)
    part = share_documents(*runs).parts(0.1, 0.1, 0)[a.document]
    train, test = (np.flatnonzero((part == number) & (a.position > 0)) for number in (0, 2))
    for share in (0.0, 0.1):
        result = linear_maps(*runs, ridges=(share,))
        for s in range(2):
            for t in range(2):
                at = result.sel(source_point=s, target_point=t)
                model = linear_model.Ridge(alpha=float(at.ridge), solver="svd")
                model.fit(a.h[s][train], b.h[t][train])
                truth = b.h[t][test]
                error = np.linalg.norm(model.predict(a.h[s][test]) - truth, axis=1)
                expected = (error / np.linalg.norm(truth, axis=1)).mean()
                assert float(at.relative_error) == pytest.approx(expected, rel=1e-5)


def test_probes_are_its_discriminant(tmp_path: Path) -> None:
    """With the ridge that was chosen, and labels that are hard to read."""
    random = np.random.default_rng(1)
    h = random.normal(size=(2, ROWS, D))
    label = np.arange(60) % 2
    h[1, :, 0] += 1.5 * np.repeat(label, LENGTHS)
    made = store(tmp_path / "s", h, LENGTHS)
    result = probes(open_store(made.root), "subject", pool="each", folds=3)
    kept = xr.open_zarr(made.root / "analysis" / "probes.zarr", "documents", consolidated=False)
    fold = kept.fold.values[made.document]
    content = (made.position > 0) & ~made.special
    for point in range(2):
        right = np.zeros(ROWS, bool)
        for number in range(3):
            train, test = content & (fold != number), content & (fold == number)
            x = made.h[point]
            mean, scale = x[train].mean(axis=0), x[train].std(axis=0)
            x = (x - mean) / scale
            ridge = float(result.ridge.sel(task="label", fold=number, point=point))
            y = label[made.document]
            estimator = Ridged(ridge)
            model = discriminant_analysis.LinearDiscriminantAnalysis(
                solver="lsqr", covariance_estimator=estimator
            )
            model.fit(x[train], y[train])
            right[test] = model.predict(x[test]) == y[test]
        found = float(result.accuracy.sel(label="all", point=point))
        assert found == pytest.approx(right[content].mean())
    assert float(result.accuracy.sel(label="all", point=1)) > 0.7


class Ridged:
    """A covariance for scikit-learn, with a ridge."""

    def __init__(self, ridge: float) -> None:
        self.ridge = ridge

    def fit(self, x: np.ndarray) -> Ridged:
        centred = x - x.mean(axis=0)
        self.covariance_ = centred.T @ centred / len(x) + self.ridge * np.eye(x.shape[1])
        return self
