"""Maps against numpy alone: the same rows, fitted directly; and cases whose answer is known."""

from __future__ import annotations

import importlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from depthscope.analysis.linear_maps import linear_maps
from depthscope.analysis.map_plan import Plan, Run, Spill
from depthscope.analysis.shared_documents import share_documents
from depthscope.analysis.store import open as open_store
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

from .paired_stores import store
from .small_store import SmallStore

# The package exports the function under the module's name.
module = importlib.import_module("depthscope.analysis.linear_maps")
Array = NDArray[Any]
D, WIDTH = 6, 5


def lengths(seed: int = 0, count: int = 40) -> list[int]:
    return [int(n) for n in np.random.default_rng(seed).integers(4, 30, count)]


def states(seed: int = 0) -> tuple[Array, Array, list[int]]:
    """Three source points and four target points; point 1 of the target is a noisy map of two."""
    random = np.random.default_rng(seed)
    sizes = lengths(seed)
    n = sum(sizes)
    a = random.normal(size=(3, n, D)) * np.array([9, 1, 1, 0.1, 2, 1])
    b = random.normal(size=(4, n, WIDTH)) + 3
    b[1] = a[2] @ random.normal(size=(D, WIDTH)) + 0.4 * random.normal(size=(n, WIDTH)) + 7
    b[2] = np.tanh(a[1] @ random.normal(size=(D, WIDTH)))
    return a, b, sizes


class Case:
    """Two stores, and their paired content rows by part, as float64."""

    def __init__(self, folder: Path, a: Array, b: Array, sizes: list[int], **options: Any) -> None:
        self.a = store(folder / "a", a, sizes, **options)
        self.b = store(folder / "b", b, sizes, **options)
        self.runs = open_store(self.a.root), open_store(self.b.root)
        parts = share_documents(*self.runs).parts(0.1, 0.1, 0)
        content = (self.a.position > 0) & ~self.a.special
        if not options.get("invalid"):
            of_row = parts[self.a.document]
            self.rows = [np.flatnonzero(content & (of_row == part)) for part in range(3)]

    def maps(self, **settings: Any) -> xr.Dataset:
        return linear_maps(*self.runs, **settings)

    def fit(self, s: int, t: int, ridge: float, rows: Array) -> tuple[Array, Array]:
        """Weights and intercept that minimise the penalised squares, by augmented least squares."""
        x, y = self.a.h[s][rows], self.b.h[t][rows]
        xc, yc = x - x.mean(0), y - y.mean(0)
        if ridge:
            xc = np.vstack([xc, np.sqrt(ridge) * np.eye(D)])
            yc = np.vstack([yc, np.zeros((D, yc.shape[1]))])
        weights = np.linalg.lstsq(xc, yc, rcond=1e-5)[0]
        return weights, y.mean(0) - x.mean(0) @ weights

    def predict(self, s: int, t: int, ridge: float, rows: Array) -> Array:
        weights, intercept = self.fit(s, t, ridge, self.rows[0])
        return self.a.h[s][rows] @ weights + intercept


def relative(guess: Array, truth: Array) -> float:
    each = np.linalg.norm(guess - truth, axis=1) / np.linalg.norm(truth, axis=1)
    return float(each.mean())


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    a, b, sizes = states()
    special = np.random.default_rng(9).random(sum(sizes)) < 0.1
    return Case(tmp_path_factory.mktemp("maps"), a, b, sizes, special=special)


def test_least_squares_is_numpys(case: Case) -> None:
    result = case.maps(ridges=(0.0,))
    assert (result.ridge == 0).all()
    for s in range(3):
        for t in range(4):
            truth = case.b.h[t][case.rows[2]]
            guess = case.predict(s, t, 0, case.rows[2])
            at = result.sel(source_point=s, target_point=t)
            assert float(at.relative_error) == pytest.approx(relative(guess, truth), rel=1e-5)
            residual, spread = ((truth - guess) ** 2).sum(0), ((truth - truth.mean(0)) ** 2).sum(0)
            assert float(at.r2) == pytest.approx(1 - residual.sum() / spread.sum(), abs=1e-5)
            np.testing.assert_allclose(at.r2_dimension, 1 - residual / spread, atol=1e-5)


def test_ridge_is_that_of_the_formula_and_the_best_on_validation(case: Case) -> None:
    result = case.maps()
    x = case.a.h[:, case.rows[0]]
    size = [float(np.square(p - p.mean(0)).sum() / D) for p in x]
    assert len(np.unique(result.ridge)) > 1
    for s in range(3):
        for t in range(4):
            at = result.sel(source_point=s, target_point=t)
            truth = case.b.h[t][case.rows[2]]
            guess = case.predict(s, t, float(at.ridge), case.rows[2])
            assert float(at.relative_error) == pytest.approx(relative(guess, truth), rel=1e-5)
            tried = [r * size[s] for r in result.attrs["parameters"]["ridges"]]
            checked = case.b.h[t][case.rows[1]]
            losses = [np.square(case.predict(s, t, r, case.rows[1]) - checked).sum() for r in tried]
            chosen = int(np.argmin(np.abs(np.array(tried) - float(at.ridge))))
            assert losses[chosen] == pytest.approx(min(losses), rel=1e-6)


def test_baselines(case: Case) -> None:
    result = case.maps(ridges=(0.0,))
    for t in range(4):
        train, truth = case.b.h[t][case.rows[0]], case.b.h[t][case.rows[2]]
        expected = relative(np.broadcast_to(train.mean(0), truth.shape), truth)
        assert result.baseline_mean_error.sel(target_point=t).values == pytest.approx(expected)
    assert result.baseline_identity_error.isnull().all()
    # Nothing can be learned from shuffled targets: the fit only adds its own noise.
    ratio = result.baseline_shuffled_error / result.baseline_mean_error
    assert (abs(ratio - 1) < 0.05).all()
    # The sketch is the whole target here, so the shuffled map is exact: it fits its own order.
    assert (result.baseline_shuffled_error != result.baseline_mean_error).all()


def test_identity_where_dimensions_agree(tmp_path: Path) -> None:
    a, _, sizes = states()
    case = Case(tmp_path, a, a[[0, 2]] + 1.0, sizes)
    result = case.maps()
    for s in range(3):
        for t, own in enumerate((0, 2)):
            truth = case.b.h[t][case.rows[2]]
            expected = relative(case.a.h[s][case.rows[2]], truth)
            at = result.sel(source_point=s, target_point=t)
            assert float(at.baseline_identity_error) == pytest.approx(expected, rel=1e-5)
            if s == own:
                assert float(at.relative_error) < 1e-5


def test_zero_layers_give_the_staircase(tmp_path: Path) -> None:
    """A deep model that is the shallow one with layers that add nothing."""
    a, _, sizes = states()
    stairs = [0, 0, 1, 1, 1, 2, 2]
    result = Case(tmp_path, a, a[stairs], sizes).maps()
    for t, s in enumerate(stairs):
        assert float(result.relative_error.sel(source_point=s, target_point=t)) < 1e-5
        others = result.relative_error.sel(target_point=t).drop_sel(source_point=s)
        assert float(others.min()) > 0.5
    assert result.best_source_point.values.tolist() == stairs
    depths, targets = np.array(stairs) / 2, np.arange(7) / 6
    slope = np.polyfit(targets, depths, 1)[0]
    assert float(result.diagonal_slope) == pytest.approx(slope)
    assert float(result.diagonal_slope_low) == pytest.approx(slope)
    assert float(result.diagonal_distance) == pytest.approx(np.abs(depths - targets).mean())


def test_a_rotated_copy_is_read_without_error(tmp_path: Path) -> None:
    a, _, sizes = states()
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(D, D)))[0]
    result = Case(tmp_path, a, a @ rotation, sizes).maps()
    assert result.best_source_point.values.tolist() == [0, 1, 2]
    assert (np.diagonal(result.relative_error) < 1e-5).all()
    assert float(result.diagonal_slope) == pytest.approx(1)
    assert float(result.diagonal_distance) == 0


def test_rank(case: Case) -> None:
    result = case.maps(ridges=(0.0,), rank=2)
    for s, t in ((2, 1), (0, 0), (1, 2)):
        weights, _ = case.fit(s, t, 0, case.rows[0])
        x, y = (h[p][case.rows[0]] for h, p in ((case.a.h, s), (case.b.h, t)))
        # The best map of a rank is the full one, projected on what its fitted values do most.
        right = np.linalg.svd((x - x.mean(0)) @ weights, full_matrices=False)[2][:2]
        reduced = weights @ right.T @ right
        guess = (case.a.h[s][case.rows[2]] - x.mean(0)) @ reduced + y.mean(0)
        expected = relative(guess, case.b.h[t][case.rows[2]])
        found = float(result.relative_error.sel(source_point=s, target_point=t))
        assert found == pytest.approx(expected, rel=1e-5)


def test_collinear_dimensions_do_not_blow_up(tmp_path: Path) -> None:
    a, b, sizes = states()
    a[:, :, 3] = a[:, :, 0] + a[:, :, 1]
    a[:, :, 4] = 0
    case = Case(tmp_path, a, b, sizes)
    result = case.maps(ridges=(0.0,))
    guess = case.predict(2, 1, 0, case.rows[2])
    expected = relative(guess, case.b.h[1][case.rows[2]])
    found = float(result.relative_error.sel(source_point=2, target_point=1))
    assert found == pytest.approx(expected, rel=1e-3)


def test_massive_rows_are_left_out(tmp_path: Path, case: Case) -> None:
    a, b, sizes = states()
    clean = Case(tmp_path / "clean", a, b, sizes)
    hit = [int(clean.rows[0][5]), int(clean.rows[2][3])]
    a[1, hit[0], 0] = 5000
    b[3, hit[1], 2] = 5000
    dirty = Case(tmp_path / "dirty", a, b, sizes)
    without = np.setdiff1d(np.arange(sum(sizes)), hit)
    runs = [run.at(without) for run in clean.runs]
    expected = linear_maps(runs[0], runs[1])
    found = dirty.maps()
    assert found.attrs["massive_rows"] == 2
    assert int(found["count"]) == int(expected["count"]) == len(clean.rows[2]) - 1
    np.testing.assert_allclose(found.relative_error, expected.relative_error, rtol=1e-5)
    kept = dirty.maps(massive=0)
    assert kept.attrs["massive_rows"] == 0
    assert float(abs(kept.relative_error - expected.relative_error).max()) > 0.01


def test_documents_that_failed_are_left_out(tmp_path: Path) -> None:
    a, b, sizes = states()
    bad = Case(tmp_path, a, b, sizes, invalid=(3, 7), marked=False)
    result = bad.maps()
    assert np.isfinite(result.relative_error).all()
    total = sum(result.attrs[f"{part}_rows"] for part in ("train", "validation", "test"))
    assert total == sum(n - 1 for i, n in enumerate(sizes) if i not in (3, 7))


def tiled(monkeypatch: pytest.MonkeyPatch, tiles: tuple[tuple[Run, ...], ...]) -> None:
    def of(*_: Any) -> Plan:
        return Plan(1024, tiles, 1, 1)

    monkeypatch.setattr(module.Plan, "of", of)


def test_several_passes_give_the_same_numbers(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    once = case.maps()
    assert once.attrs["training_passes"] == 1
    tiled(
        monkeypatch,
        (
            (Run(0, 0, 4), Run(1, 0, 1)),
            (Run(1, 1, 3),),
            (Run(1, 3, 4), Run(2, 0, 4)),
        ),
    )
    thrice = case.maps(scratch=tmp_path)
    assert thrice.attrs["training_passes"] == 3
    assert thrice.attrs["held_out_passes"] == 1
    assert not list(tmp_path.iterdir())
    for name in once.data_vars:
        np.testing.assert_allclose(once[name], thrice[name], rtol=1e-6, atol=1e-9)


def test_torch_gives_the_same_numbers(case: Case) -> None:
    ours, theirs = case.maps(), case.maps(device="cpu")
    for name in ("relative_error", "r2", "baseline_shuffled_error", "ridge", "r2_dimension"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_form_and_reuse(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "maps.zarr"
    made = case.maps(out=out)
    saved = xr.open_zarr(out, consolidated=False)
    assert saved.relative_error.dims == ("source_point", "target_point")
    assert saved.attrs["analysis"] == "maps"
    assert saved.attrs["paired_share"] == 1
    assert [one["model"] for one in saved.attrs["inputs"]] == ["a", "b"]
    assert saved.attrs["test_rows"] == int(saved["count"]) == len(case.rows[2])
    for variable in saved.data_vars.values():
        assert variable.attrs["units"]
        assert variable.attrs["long_name"]
    assert (saved.relative_error_low < saved.relative_error).all()
    assert (saved.relative_error < saved.relative_error_high).all()
    assert (saved.r2_low <= saved.r2_high).all()
    kept = xr.open_zarr(out, group="documents", consolidated=False)
    total = kept.relative_error_sum.sum("document") / kept.rows.sum()
    np.testing.assert_allclose(total, made.relative_error)

    def broken(*_: Any) -> None:
        raise AssertionError("it was computed again")

    monkeypatch.setattr(module, "_compute", broken)
    xr.testing.assert_identical(case.maps(out=out).drop_attrs(), made.drop_attrs())
    with pytest.raises(AssertionError, match="computed again"):
        case.maps(out=out, seed=1)


def test_points_can_be_chosen(case: Case) -> None:
    every, some = case.maps(), case.maps(source_points=[2, 0], target_points=[1])
    assert some.source_point.values.tolist() == [0, 2]
    expected = every.relative_error.sel(source_point=[0, 2], target_point=[1])
    np.testing.assert_allclose(some.relative_error, expected, rtol=1e-6)


def test_memory_decides_the_passes() -> None:
    class Sized:
        def __init__(self, points: int, width: int) -> None:
            self.width, self.points, self.row_bytes = width, points, 2 * points * width

        def __len__(self) -> int:
            return self.points

    small, large = Sized(29, 1536), Sized(49, 5120)
    roomy = Plan.of(small, large, 32, 200 << 30, 1 << 30)  # type: ignore[arg-type]
    assert len(roomy.tiles) == 1
    tight = Plan.of(small, large, 32, 32 << 30, 1 << 30)  # type: ignore[arg-type]
    assert len(tight.tiles) == -(-tight.moments // tight.budget)
    pairs = {(r.source, t) for tile in tight.tiles for r in tile for t in range(r.first, r.last)}
    assert len(pairs) == 29 * 49 == sum(r.last - r.first for tile in tight.tiles for r in tile)
    with pytest.raises(RequestError, match=r"need at least .* give --memory"):
        Plan.of(small, large, 32, 3 << 30, 1 << 30)  # type: ignore[arg-type]


def refused(message: str, case: Case, **settings: Any) -> None:
    with pytest.raises(RequestError, match=message) as error:
        case.maps(**settings)
    assert "\n" not in str(error.value)


def test_bad_requests(case: Case, tmp_path: Path) -> None:
    refused("point 9 is not stored; stored points: 0, 1, 2", case, source_points=[9])
    refused("ridges must be at least one number", case, ridges=())
    refused("rank 0", case, rank=0)
    refused("must be positive and leave", case, test=0.7, validation=0.3)
    refused("device 'nowhere' cannot be used", case, device="nowhere")
    a, b, sizes = states()
    few = Case(tmp_path / "few", a[:, :9], b[:, :9], [3, 3, 3])
    refused("least squares needs more rows than dimensions", few, ridges=(0.0,))
    assert np.isfinite(few.maps().relative_error).all()
    other = store(tmp_path / "other", b, sizes, digests=[f"x{n}" for n in range(len(sizes))],
                  texts=[f"other {n}" for n in range(len(sizes))])  # fmt: skip
    with pytest.raises(RequestError, match="share 0 of 40 documents: extract both from one corpus"):
        linear_maps(case.runs[0], open_store(other.root))
    none: SmallStore = store(tmp_path / "none", b, sizes, token_ids=np.full(sum(sizes), 77))
    with pytest.raises(RequestError, match="no rows of the two stores pair by tokens"):
        linear_maps(case.runs[0], open_store(none.root))


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_threads_spill_is_all_there(in_memory: bool, tmp_path: Path) -> None:
    """Whoever writes first makes the array; the others must find it, not make another."""
    threads, rounds = 8, 40
    with (
        Spill(rounds, (16, threads), in_memory, tmp_path) as spill,
        ThreadPoolExecutor(threads) as pool,
    ):
        for source in range(rounds):
            start = threading.Barrier(threads)

            def write(column: int, source: int = source, start: threading.Barrier = start) -> None:
                start.wait()
                spill.write(source, column, np.full((16, 1), column + 1.0))

            list(pool.map(write, range(threads)))
            np.testing.assert_array_equal(
                spill.read(source), np.tile(np.arange(1.0, threads + 1), (16, 1))
            )
