"""Probes on planted labels, against the discriminant written out with inverses, and by chance."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from depthscope.analysis import block_passes, geometry_rows, probe_units
from depthscope.analysis.figures import draw
from depthscope.analysis.interactive import interactive
from depthscope.analysis.probe_charts import probe_findings
from depthscope.analysis.probe_rules import convergence_place, jump_place
from depthscope.analysis.probes import cut_points, probes
from depthscope.analysis.store import open as open_store
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

from . import small_store
from .paired_stores import store
from .small_store import WORDS, SmallStore

# The package exports the function under the module's name.
module = importlib.import_module("depthscope.analysis.probes")
Array = NDArray[Any]
D, POINTS, DOCUMENTS = 7, 5, 160
LENGTHS = [3 + number % 4 for number in range(DOCUMENTS)]
ROWS = sum(LENGTHS)
OF_ROW = np.repeat(np.arange(DOCUMENTS), LENGTHS)


def noise(seed: int = 0) -> Array:
    random = np.random.default_rng(seed)
    return random.normal(size=(POINTS, ROWS, D)) * np.array([4, 1, 1, 0.1, 2, 1, 30]) + 3


@pytest.fixture(scope="module", autouse=True)
def no_statistics() -> Iterator[None]:
    """Probes read the stream alone; the rest of a store takes seconds to make."""
    original, small_store._measure = small_store._measure, no_measure
    yield
    small_store._measure = original


def no_measure(made: SmallStore) -> None:
    made.norm[...] = made.norm_ratio[...] = made.cosine[...] = 0
    shape = (made.layers + 1, made.rows)
    names = ("kl", "top5_overlap", "top1_agreement", "entropy")
    made.lens = {name: np.zeros(shape) for name in names}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """Odd documents are ``maths``; from point 2 on every row says so."""
    h = noise(11)
    h[1] = h[0]
    h[2:, :, 1] += np.where(OF_ROW % 2, 9.0, -9.0)
    return store(tmp_path_factory.mktemp("probes") / "s", h, LENGTHS, task_rows=512)


@pytest.fixture(scope="module")
def result(planted: SmallStore) -> xr.Dataset:
    return probes(open_store(planted.root), "subject")


def test_a_planted_label_is_read_from_where_it_is_written(result: xr.Dataset) -> None:
    assert result.label.values.tolist() == ["all", "facts", "maths"]
    assert (result.accuracy.sel(point=[2, 3, 4]) == 1).all()
    before = result.sel(label="all", point=[0, 1])
    assert (abs(before.accuracy - 0.5) < 0.13).all()
    assert ((before.low < 0.5) & (before.high > 0.5)).all()
    # Random labels cannot be read anywhere, written label or not.
    assert (abs(result.control_accuracy.sel(label="all") - 0.5) < 0.13).all()
    assert (result.selectivity_low.sel(label="all", point=[2, 3, 4]) > 0.3).all()
    assert (result.selectivity_low.sel(label="all", point=[0, 1]) < 0).all()
    for place in ("jump_point", "convergence_point"):
        assert float(result[place].sel(label="all")) == 2
        assert float(result[f"{place}_low"].sel(label="all")) <= 2
        assert float(result[f"{place}_high"].sel(label="all")) == 2
        assert float(result[f"{place}_share"].sel(label="all")) > 0.95
    assert result["count"].values.tolist() == [DOCUMENTS, DOCUMENTS // 2, DOCUMENTS // 2]
    assert "best at point 2 of 4: accuracy 1.00" in probe_findings(result)[0]
    for variable in result.data_vars.values():
        assert variable.attrs["long_name"]


def reference(x: Array, label: Array, fold: Array, ridge: Array) -> Array:
    """Predictions of the discriminant with shared covariance, fold by fold, in float64."""
    found = np.empty(len(x), int)
    for number in range(fold.max() + 1):
        inside = fold != number
        train, y = x[inside], label[inside]
        mean, scale = train.mean(axis=0), train.std(axis=0)
        train, test = (train - mean) / scale, (x[~inside] - mean) / scale
        centres = np.array([train[y == c].mean(axis=0) for c in range(label.max() + 1)])
        within = train - centres[y]
        inverse = np.linalg.inv(within.T @ within / len(y) + ridge[number] * np.eye(x.shape[1]))
        prior = np.log(np.bincount(y) / len(y))
        scores = test @ inverse @ centres.T
        scores += prior - np.einsum("cd,de,ce->c", centres, inverse, centres) / 2
        found[~inside] = scores.argmax(axis=1)
    return found


def generalised(x: Array, label: Array, ridge: float) -> float:
    """Generalised cross-validation of ridge regression on indicators, by its hat matrix."""
    n = len(x)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    y = np.eye(label.max() + 1)[label]
    y = y - y.mean(axis=0)
    hat = x @ np.linalg.inv(x.T @ x + ridge * n * np.eye(x.shape[1])) @ x.T + 1 / n
    return float(np.square(y - hat @ y).sum() / (1 - np.trace(hat) / n) ** 2)


@pytest.mark.parametrize("classes", [2, 4])
def test_predictions_are_those_of_the_formula(tmp_path: Path, classes: int) -> None:
    label = np.random.default_rng(5).permutation(np.arange(DOCUMENTS) % classes)
    h = noise(1)
    # Classes in a row, where least squares on indicators would hide the middle ones.
    h[1:, :, 2] += 1.5 * label[OF_ROW]
    made = store(tmp_path / "s", h, LENGTHS, task_rows=512)
    relabel(made, [f"c{number}" for number in label])
    result = probes(open_store(made.root), "subject", folds=4)
    kept = xr.open_zarr(made.root / "analysis" / "probes.zarr", "documents", consolidated=False)
    fold = kept.fold.values
    last = np.cumsum(LENGTHS) - 1
    for point in range(POINTS):
        ridge = result.ridge.sel(task="label", point=point).values
        x = made.h[point][last]
        right = reference(x, label, fold, ridge) == label
        np.testing.assert_array_equal(kept.correct.sel(task="label", point=point), right)
        assert float(result.accuracy.sel(label="all", point=point)) == right.mean()
        for name, of_class in zip(result.label.values[1:], range(classes), strict=True):
            found = float(result.accuracy.sel(label=name, point=point))
            assert found == pytest.approx(right[label == of_class].mean())
        for number in range(4):
            inside = fold != number
            tried = [10.0**power for power in range(-5, 3)]
            errors = [generalised(x[inside], label[inside], one) for one in tried]
            assert tried[int(np.argmin(errors))] == pytest.approx(ridge[number])
    assert float(result.accuracy.sel(label="all", point=4)) > 1.4 / classes


def relabel(made: SmallStore, subjects: list[str | None], **columns: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = made.root / "documents.parquet"
    table = pq.read_table(path)
    for name, values in {"subject": subjects, **columns}.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    pq.write_table(table, path)


def test_folds_are_of_documents_and_of_their_copies(tmp_path: Path) -> None:
    made = store(tmp_path / "s", noise(2), LENGTHS, task_rows=512)
    names: list[str | None] = [f"c{number % 3}" for number in range(DOCUMENTS)]
    names[7], names[8], names[9] = None, "", "rare"
    twins = [f"{number % 100:032x}" for number in range(DOCUMENTS)]
    relabel(made, names, digest=twins)
    result = probes(open_store(made.root), "subject")
    assert (result.attrs["without_label"], result.attrs["left_out"]) == (2, 1)
    assert int(result["count"][0]) == DOCUMENTS - 3
    kept = xr.open_zarr(made.root / "analysis" / "probes.zarr", "documents", consolidated=False)
    fold = dict(zip(kept.document.values.tolist(), kept.fold.values.tolist(), strict=True))
    for number in range(100, DOCUMENTS):
        if number - 100 in fold:
            assert fold[number] == fold[number - 100]
    assert set(fold.values()) == set(range(5))
    assert min(np.bincount(kept.fold)) > 20


def test_the_mean_of_content_rows(tmp_path: Path) -> None:
    """A label that only rows before the last one carry, and the first row shouts against."""
    h = noise(3)
    sign = np.where(OF_ROW % 2, 9.0, -9.0)
    first, last = np.zeros(ROWS, bool), np.zeros(ROWS, bool)
    last[np.cumsum(LENGTHS) - 1] = True
    first[np.cumsum(LENGTHS) - LENGTHS] = True
    h[1, :, 1] += np.where(last, 0, np.where(first, -100 * sign, sign))
    made = store(tmp_path / "s", h, LENGTHS, task_rows=512)
    run = open_store(made.root)
    mean = probes(run, "subject", pool="mean", out=tmp_path / "mean.zarr")
    assert (mean.accuracy.sel(point=1) == 1).all()
    assert float(abs(mean.accuracy.sel(label="all", point=0) - 0.5)) < 0.13
    alone = probes(run, "subject", out=tmp_path / "last.zarr")
    assert float(abs(alone.accuracy.sel(label="all", point=1) - 0.5)) < 0.13
    each = probes(run, "subject", pool="each", out=tmp_path / "each.zarr")
    assert int(each["count"][0]) == ROWS - DOCUMENTS
    assert 0.6 < float(each.accuracy.sel(label="all", point=1)) < 1


@pytest.fixture(scope="module")
def worded(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """Every row says its word from point 1 on, and which of five token ids it has at point 0."""
    h = noise(4)
    ids = np.random.default_rng(6).integers(0, 5, ROWS)
    made = store(tmp_path_factory.mktemp("words") / "s", h, LENGTHS, token_ids=ids, task_rows=512)
    word = np.array([WORDS.index(token) for token in made.token])
    h[0] = np.eye(D)[ids] * 20 + np.random.default_rng(1).normal(size=(ROWS, D))
    h[1:] += np.eye(D)[word] * 200
    # The same seed draws the same words again.
    return store(made.root.parent / "t", h, LENGTHS, token_ids=ids, task_rows=512)


def test_labels_of_tokens_and_a_control_by_type(worded: SmallStore) -> None:
    result = probes(open_store(worded.root), "token")
    assert sorted(result.label.values[1:].tolist()) == sorted(WORDS)
    content = ROWS - DOCUMENTS
    assert int(result["count"][0]) == content
    assert int(result["count"][1:].sum()) == content
    assert (result.accuracy.sel(point=[1, 2, 3, 4]) > 0.99).all()
    # The control class belongs to the token id, which point 0 shows and the others hide.
    assert float(result.control_accuracy.sel(label="all", point=0)) == 1
    assert (result.control_accuracy.sel(label="all", point=[1, 2, 3, 4]) < 0.9).all()
    assert float(result.selectivity_high.sel(label="all", point=0)) < 0
    assert float(result.jump_point.sel(label="all")) == 1


def test_blocks_passes_and_workers_change_nothing(
    planted: SmallStore, worded: SmallStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cases = [(planted, {"label": "subject"}), (planted, {"label": "subject", "pool": "mean"}),
             (worded, {"label": "token", "labels": [WORDS[0], WORDS[1]]})]  # fmt: skip
    for number, (made, arguments) in enumerate(cases):
        run = open_store(made.root)
        whole = probes(run, **arguments, out=tmp_path / f"{number}.zarr")  # type: ignore[arg-type]
        ticks: list[tuple[int, int]] = []
        with monkeypatch.context() as patch:
            patch.setattr(geometry_rows, "BLOCK_ROWS", 100)
            patch.setattr(probe_units, "BLOCK_ROWS", 100)
            patch.setattr(module, "cut_points", lambda *_: [range(0, 2), range(2, POINTS)])
            again = probes(
                run, **arguments, out=tmp_path / f"{number}b.zarr",  # type: ignore[arg-type]
                progress=lambda *step, into=ticks: into.append(step),
            )  # fmt: skip
            patch.setattr(block_passes, "workers_now", lambda: 3)
            third = probes(run, **arguments, out=tmp_path / f"{number}c.zarr")  # type: ignore[arg-type]
        assert again.attrs["passes"] == 4
        assert ticks[-1][0] == ticks[-1][1] == len(ticks)
        for name in whole.data_vars:
            np.testing.assert_allclose(whole[name], again[name], rtol=1e-9)
            np.testing.assert_allclose(whole[name], third[name], rtol=1e-9)


def test_reuse_charts_and_selection(
    planted: SmallStore, result: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    chart, by_class = result.depthscope.charts()
    assert [curve.label for curve in chart.panels[0].curves] == ["Accuracy", "Control task"]
    counts = dict(zip(result["label"].values.tolist(), result["count"].values, strict=True))
    labels = [f"{name} ({counts[name]} units)" for name in ("facts", "maths")]
    assert [curve.label for curve in by_class.panels[0].curves] == labels
    assert len(interactive(chart).data) >= 2
    assert [len(draw(one).axes) for one in (chart, by_class)] == [1, 1]
    half = probes(open_store(planted.root).where("document < 80"), "subject", resamples=50)
    assert int(half["count"][0]) == 80
    saved = xr.open_zarr(planted.root / "analysis" / "probes.zarr", consolidated=False)
    assert saved.attrs["label"] == "subject"

    def broken(*_: Any) -> None:
        raise AssertionError("it was computed again")

    monkeypatch.setattr(module, "_compute", broken)
    xr.testing.assert_identical(probes(open_store(planted.root), "subject"), result)


def test_rules_on_curves() -> None:
    nan = np.nan
    for curve, jump, steady in (
        ([0.5, 0.5, 1.0, 1.0, 1.0], 2, 2),
        ([0.5, 0.5, 0.5], nan, 0),
        # It rests, and rises again.
        ([0.5, 0.6, 0.6, 0.6, 0.9, 0.9], 1, 4),
        ([0.5, 0.52, 0.54, 0.56], nan, nan),
        ([0.5, 0.6, 0.7, 0.8], 1, nan),
        ([0.5, 0.549, 0.5], nan, nan),
        ([0.7], nan, nan),
        ([nan, nan], nan, nan),
    ):
        np.testing.assert_array_equal(jump_place(np.array(curve)), jump)
        np.testing.assert_array_equal(convergence_place(np.array(curve)), steady)
    both = np.array([[0.5, 1.0, 1.0], [0.5, 0.5, 0.5]])
    np.testing.assert_array_equal(jump_place(both), [1, nan])
    np.testing.assert_array_equal(convergence_place(both), [1, 0])


def test_bad_requests(planted: SmallStore, tmp_path: Path) -> None:
    run = open_store(planted.root)
    for message, arguments in (
        ("no label 'colour'; documents have source, line", {"label": "colour"}),
        ("has 1 values that at least 5 documents have", {"label": "special"}),
        ("has 0 values that at least 5 documents have", {"label": "difficulty"}),
        ("nothing has subject 'art'", {"label": "subject", "labels": ["maths", "art"]}),
        ("at least two folds", {"label": "subject", "folds": 1}),
        ("are classified one by one", {"label": "token", "pool": "last"}),
        ("unknown pool", {"label": "subject", "pool": "first"}),
        ("give --memory", {"label": "subject", "memory": 1000}),
    ):
        with pytest.raises(RequestError, match=message) as error:
            probes(run, out=tmp_path / "x.zarr", **arguments)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
    assert not (tmp_path / "x.zarr").exists()
    empty = store(tmp_path / "e", noise(), LENGTHS, task_rows=512, committed=())
    with pytest.raises(RequestError, match="nothing is committed yet"):
        probes(open_store(empty.root), "subject")
    tiles = cut_points(127, 4096, 5, 2, 1000, 1000, 64 << 30)
    assert len(tiles) > 1
    assert [point for tile in tiles for point in tile] == list(range(127))
