"""Geometry against textbook formulas on whole matrices, in float64 and by plain loops."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from depthscope.analysis import geometry_rows
from depthscope.analysis.geometry import cut_points, geometry
from depthscope.analysis.store import open as open_store
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

from .paired_stores import store
from .small_store import SmallStore

# The package exports the function under the module's name.
module = importlib.import_module("depthscope.analysis.geometry")
Array = NDArray[Any]
D = 6


def states(seed: int = 0, rows: int = 330) -> Array:
    """Four points: noise, a linear function of it, a rotated copy of that, and a bent one."""
    random = np.random.default_rng(seed)
    h = np.empty((4, rows, D))
    h[0] = random.normal(size=(rows, D)) * np.array([5, 1, 1, 0.5, 2, 1]) + 2
    h[1] = h[0] @ random.normal(size=(D, D)) + 1
    rotation = np.linalg.qr(random.normal(size=(D, D)))[0]
    h[2] = 3 * h[1] @ rotation
    h[3] = np.tanh(h[2]) + 0.1 * random.normal(size=(rows, D))
    return h


def sizes(rows: int = 330) -> list[int]:
    return [11] * (rows // 11)


class Case:
    def __init__(self, folder: Path, h: Array, **options: Any) -> None:
        rows = h.shape[1]
        special = np.random.default_rng(4).random(rows) < 0.1
        self.store: SmallStore = store(folder / "s", h, sizes(rows), special=special, **options)
        self.run = open_store(self.store.root)
        every = np.ones(rows, bool)
        content = (self.store.position > 0) & ~special
        self.rows = {"all": np.flatnonzero(every), "content": np.flatnonzero(content)}

    def vectors(self, token_set: str, point: int) -> Array:
        return np.asarray(self.store.h[point][self.rows[token_set]])


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("geometry"), states())


@pytest.fixture(scope="module")
def result(case: Case) -> xr.Dataset:
    return geometry(case.run, cka_rows=10_000)


SETS = ("all", "content")


def unbiased_cka(x: Array, y: Array) -> float:
    """Song et al. 2012, equation 5, term by term."""
    n = len(x)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)

    def one(a: Array, b: Array) -> float:
        ones = np.ones(n)
        first = np.trace(a @ b)
        second = (ones @ a @ ones) * (ones @ b @ ones) / ((n - 1) * (n - 2))
        third = 2 * (ones @ a @ b @ ones) / (n - 2)
        return float((first + second - third) / (n * (n - 3)))

    return one(k, l) / float(np.sqrt(one(k, k) * one(l, l)))


@pytest.mark.parametrize("token_set", SETS)
def test_cka_in_one_block_is_the_textbook_formula(
    case: Case, result: xr.Dataset, token_set: str
) -> None:
    for p in range(4):
        for q in range(4):
            x, y = case.vectors(token_set, p), case.vectors(token_set, q)
            found = float(result.cka.sel(token_set=token_set, point=p, point_other=q))
            assert found == pytest.approx(unbiased_cka(x, y), abs=1e-5)


def test_cka_knows_rotation_and_scale(result: xr.Dataset) -> None:
    assert float(result.cka.sel(token_set="all", point=1, point_other=2)) == pytest.approx(1)
    assert (result.cka <= 1 + 1e-6).all()


def test_cka_over_blocks_is_unbiased(tmp_path: Path) -> None:
    """The mean over many small blocks comes to the whole matrix, though each is far from it."""
    random = np.random.default_rng(5)
    h = random.normal(size=(2, 6600, D))
    h[1] = 0.5 * h[0] + random.normal(size=h[0].shape)
    case = Case(tmp_path, h, task_rows=1024)
    small = geometry(case.run, cka_rows=12)
    whole = unbiased_cka(case.vectors("all", 0), case.vectors("all", 1))
    found = float(small.cka.sel(token_set="all", point=0, point_other=1))
    assert found == pytest.approx(whole, abs=0.02)
    assert abs(float(small.cka_low.sel(token_set="all", point=0, point_other=1)) - whole) < 0.1
    # The biased estimator would say far more than this, for 12 rows of 6 dimensions.
    centred = [x - x.mean(0) for x in (h[0][:12], h[1][:12])]
    grams = [x @ x.T for x in centred]
    biased = (grams[0] * grams[1]).sum() / np.linalg.norm(grams[0]) / np.linalg.norm(grams[1])
    assert biased > whole + 0.1


@pytest.mark.parametrize("token_set", SETS)
def test_cosines_angles_and_influence(case: Case, result: xr.Dataset, token_set: str) -> None:
    at = result.sel(token_set=token_set)
    unit = [case.vectors(token_set, p) for p in range(4)]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in unit]
    for p in range(4):
        for q in range(4):
            each = (unit[p] * unit[q]).sum(axis=1)
            found = float(at.cosine.sel(point=p, point_other=q))
            assert found == pytest.approx(each.mean(), abs=1e-6)
            if q > p:
                angle = np.arccos(np.clip(each, -1, 1)).mean() / np.pi
                distance = at.angular_distance.sel(point=p, span=q - p)
                assert float(distance) == pytest.approx(angle, abs=1e-4)
    for layer in range(3):
        expected = 1 - (unit[layer] * unit[layer + 1]).sum(axis=1).mean()
        found = float(at.block_influence.sel(layer=layer))
        assert found == pytest.approx(expected, abs=1e-6)
        assert float(at.block_influence_low.sel(layer=layer)) < found
        assert float(at.block_influence_high.sel(layer=layer)) > found
    assert at.angular_distance.sel(point=3).isnull().all()


def test_angles_of_last_rows(case: Case, result: xr.Dataset) -> None:
    last = np.arange(10, 330, 11)
    x, y = case.store.h[0][last], case.store.h[2][last]
    each = (x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    found = float(result.angular_distance_last.sel(point=0, span=2))
    assert found == pytest.approx(np.arccos(each).mean() / np.pi, abs=1e-5)


@pytest.mark.parametrize("token_set", SETS)
def test_spectra(case: Case, result: xr.Dataset, token_set: str) -> None:
    for p in range(4):
        at = result.sel(token_set=token_set, point=p)
        x = case.vectors(token_set, p)
        size = np.linalg.svd(x - x.mean(0), compute_uv=False)
        share = size / size.sum()
        rank = np.exp(-(share * np.log(share)).sum())
        assert float(at.effective_rank) == pytest.approx(rank, rel=1e-5)
        ratio = (size**2).sum() ** 2 / (size**4).sum()
        assert float(at.participation_ratio) == pytest.approx(ratio, rel=1e-5)
        assert float(at.variance) == pytest.approx(x.var(axis=0).mean(), rel=1e-5)
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        pairs = unit @ unit.T
        n = len(x)
        anisotropy = (pairs.sum() - n) / (n * (n - 1))
        assert float(at.anisotropy) == pytest.approx(anisotropy, abs=1e-5)
        small = np.abs(x) < 0.01 * np.sqrt((x**2).mean(axis=1, keepdims=True))
        assert float(at.sparsity) == pytest.approx(small.mean())


def test_avss_is_variance_over_sparsity_as_shares(result: xr.Dataset) -> None:
    # A point without values near zero has no score.
    score = (result.variance / result.sparsity).where(result.sparsity > 0)
    np.testing.assert_allclose(result.avss, score / score.sum("point"))
    np.testing.assert_allclose(result.avss.sum("point"), 1)


def test_known_spectra(tmp_path: Path) -> None:
    """A point of k equal directions has rank k by both measures; one direction has rank 1."""
    signs = np.array([[(-1) ** (row >> bit & 1) for bit in range(3)] for row in range(8)])
    h = np.zeros((3, 330, D))
    for row in range(330):
        h[0, row, :3] = 10 * signs[row % 8]
        h[1, row, :1] = 5 * signs[row % 8, :1]
        h[2, row, 2:4] = 2 * signs[row % 8, :2]
    h = h[:, : 8 * 33]
    found = geometry(Case(tmp_path, h).run).sel(token_set="all")
    np.testing.assert_allclose(found.effective_rank, [3, 1, 2], rtol=1e-5)
    np.testing.assert_allclose(found.participation_ratio, [3, 1, 2], rtol=1e-5)
    np.testing.assert_allclose(found.variance, [50, 25 / 6, 8 / 6], rtol=1e-5)


@pytest.mark.parametrize("token_set", SETS)
def test_linearity(case: Case, result: xr.Dataset, token_set: str) -> None:
    for layer in range(3):
        x, y = case.vectors(token_set, layer), case.vectors(token_set, layer + 1)
        x, y = x - x.mean(0), y - y.mean(0)
        x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
        rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
        found = float(result.linearity.sel(token_set=token_set, layer=layer))
        assert found == pytest.approx(1 - (rest**2).sum(), abs=1e-5)
    exact = result.linearity.sel(token_set="all").values
    np.testing.assert_allclose(exact[:2], 1, atol=1e-5)
    assert exact[2] < 0.9


def test_massive_activations_are_found(tmp_path: Path) -> None:
    h = states() / 10
    h[2, 33, 4] = -4000  # first row of document 3
    h[2, 40, 1] = 3000
    h[3, 0, 4] = 900
    h[1, 50, 0] = 90
    case = Case(tmp_path, h)
    found = geometry(case.run)
    top = found.sel(token_set="all", point=2)
    assert top.massive_value.values[:2].tolist() == [-4000, 3000]
    assert top.massive_row.values[:2].tolist() == [33, 40]
    assert top.massive_position.values[:2].tolist() == [0, 7]
    assert top.massive_dimension.values[:2].tolist() == [4, 1]
    assert found.massive_count.sel(token_set="all").values.tolist() == [0, 0, 2, 1]
    content = 1 if not case.store.special[40] else 0
    assert found.massive_count.sel(token_set="content").values.tolist() == [0, 0, content, 0]
    hit = found.massive_dimension_count.sel(token_set="all", point=2)
    assert hit.values.tolist() == [0, 1, 0, 0, 1, 0]
    third = np.sort(np.abs(case.store.h[2]).ravel())[-3]
    assert abs(float(top.massive_value[2])) == pytest.approx(third, rel=1e-6)


def test_form_counts_and_reuse(
    case: Case, result: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = xr.open_zarr(case.store.root / "analysis" / "geometry.zarr", consolidated=False)
    assert saved.attrs["passes"] == 1
    for token_set in SETS:
        assert int(saved["count"].sel(token_set=token_set)) == len(case.rows[token_set])
    for variable in saved.data_vars.values():
        assert variable.attrs["long_name"]

    def broken(*_: Any) -> None:
        raise AssertionError("it was computed again")

    monkeypatch.setattr(module, "_compute", broken)
    xr.testing.assert_identical(geometry(case.run, cka_rows=10_000), result)


def test_blocks_and_passes_change_nothing(
    case: Case, result: xr.Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "cut_points", lambda *_: [range(0, 1), range(1, 3), range(3, 4)])
    again = geometry(case.run, cka_rows=10_000, out=tmp_path / "a.zarr", resamples=999)
    assert again.attrs["passes"] == 3
    for name in result.data_vars:
        if not name.endswith(("_low", "_high")):
            np.testing.assert_allclose(result[name], again[name], rtol=1e-5, atol=1e-7)
    monkeypatch.setattr(geometry_rows, "BLOCK_ROWS", 100)
    monkeypatch.setattr(geometry_rows.RowReader, "blocks", property(lambda _: 4))
    blocks = geometry(case.run, out=tmp_path / "b.zarr", resamples=998)
    for name in ("cosine", "linearity", "effective_rank", "anisotropy", "massive_value"):
        np.testing.assert_allclose(result[name], blocks[name], rtol=1e-5, atol=1e-6)
    for name in ("block_influence_low", "angular_distance_high"):
        np.testing.assert_allclose(result[name], blocks[name], rtol=2e-2)


def test_on_a_cluster(case: Case, result: xr.Dataset, tmp_path: Path) -> None:
    out = tmp_path / "cluster.zarr"
    found = geometry(case.run, cka_rows=10_000, out=out, scheduler="local", workers=2)
    for name in result.data_vars:
        np.testing.assert_allclose(result[name], found[name], rtol=1e-5, atol=1e-7)


def test_failed_documents_are_left_out(tmp_path: Path) -> None:
    case = Case(tmp_path, states(), invalid=(2,), marked=False)
    found = geometry(case.run)
    assert int(found["count"].sel(token_set="all")) == 330 - 11
    assert found.attrs["invalid_rows"] == 11
    assert np.isfinite(found.effective_rank).all()


def test_memory_decides_the_passes() -> None:
    whole = cut_points(31, 576, 1000, 8 << 30)
    assert whole == [range(31)]
    tight = cut_points(127, 16384, 1000, 200 << 30)
    assert len(tight) > 1
    assert [p for part in tight for p in part] == list(range(127))
    with pytest.raises(RequestError, match=r"needs at least .* give --memory"):
        cut_points(127, 16384, 1000, 8 << 30)


def test_bad_requests(case: Case, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="at least 4 rows"):
        geometry(case.run, cka_rows=3)
    empty = store(tmp_path / "e", states(), sizes(), committed=())
    with pytest.raises(RequestError, match="no rows: nothing is committed"):
        geometry(open_store(empty.root))
