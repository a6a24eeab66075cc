"""Results of a store that grew: as if made at once, and read from the new tasks alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from depthscope.analysis import geometry_kept, map_kept
from depthscope.analysis.contributions import contributions
from depthscope.analysis.geometry import geometry
from depthscope.analysis.lens import lens
from depthscope.analysis.linear_maps import linear_maps
from depthscope.analysis.map_rows import Side
from depthscope.analysis.store import open as open_store
from depthscope.storage import gather

from .paired_stores import store as paired
from .small_store import SmallStore, build, commit

#: Rows of four tasks; documents 5 and 8 lie across their borders.
LENGTHS, TASK = (5, 1, 12, 7, 3, 12, 16, 6, 10, 15, 1, 16, 20), 32


class Shards:
    """The shards that are read, by the array's name and the task."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: set[tuple[str, int]] = set()
        original = gather.Gather.shard

        def shard(own: Any, cuts: Any) -> None:
            plan = own._plan
            self.read.add((plan.path.rsplit("/", 1)[-1], int(cuts[plan.row_axis].shard)))
            original(own, cuts)

        monkeypatch.setattr(gather.Gather, "shard", shard)

    def of(self, name: str) -> set[int]:
        return {task for array, task in self.read if array == name}


def grown(folder: Path, tasks: tuple[int, ...]) -> SmallStore:
    """A store whose arrays are whole, of which these tasks are committed."""
    return without(build(folder, lengths=LENGTHS, task_rows=TASK), set(range(4)) - set(tasks))


def without(store: SmallStore, tasks: set[int]) -> SmallStore:
    for task in tasks:
        (store.root / "commits" / f"{task:06d}" / f"0-{store.layers}.json").unlink()
    return store


@pytest.mark.parametrize("source", ["statistics", "activations"])
def test_a_grown_store_is_read_where_it_grew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any
) -> None:
    store = grown(tmp_path / "s", (0, 2))
    arrays = {"statistics": ("norm_ratio", "kl"), "activations": ("mlp_output", "residual")}[source]
    analyses = (contributions, lens)
    for analysis in analyses:
        analysis(open_store(store.root), source, resamples=200)
    shards = Shards(monkeypatch)
    commit(store, 3)
    for analysis, array in zip(analyses, arrays, strict=True):
        shards.read.clear()
        found = analysis(open_store(store.root), source, resamples=200)
        # Document 11 began in task 2 and ends in task 3.
        assert shards.of(array) == {2, 3}
        shards.read.clear()
        again = analysis(open_store(store.root), source, resamples=200)
        assert not shards.read
        xr.testing.assert_identical(found, again)
        whole = analysis(open_store(store.root), source, resamples=200, out=tmp_path / "x.zarr")
        xr.testing.assert_allclose(found, whole, rtol=1e-12)
        assert int(found["count"].sel(token_set="all")) == len(store.visible) - TASK
    commit(store, 1)
    for analysis in analyses:
        found = analysis(open_store(store.root), source, resamples=200)
        whole = analysis(open_store(store.root), source, resamples=200, out=tmp_path / "y.zarr")
        xr.testing.assert_allclose(found, whole, rtol=1e-12)
        lines = [
            xr.open_zarr(path, group="documents", consolidated=False).load()
            for path in (
                store.root / "analysis" / f"{found.attrs['analysis']}.zarr",
                tmp_path / "y.zarr",
            )
        ]
        xr.testing.assert_allclose(*lines, rtol=1e-12)
        assert lines[0].document.values.tolist() == list(range(len(LENGTHS)))


def test_other_resamples_read_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = build(tmp_path / "s", lengths=LENGTHS, task_rows=TASK)
    run = open_store(store.root)
    contributions(run, resamples=200)
    shards = Shards(monkeypatch)
    found = contributions(run, resamples=100, seed=4)
    assert not shards.read
    whole = contributions(run, resamples=100, seed=4, out=tmp_path / "x.zarr")
    assert shards.read
    xr.testing.assert_allclose(found, whole, rtol=1e-12)


def test_what_changed_beside_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document that failed in a later task takes its earlier rows away."""
    store = grown(tmp_path / "s", (0, 1, 2))
    before = contributions(open_store(store.root), resamples=50)
    shards = Shards(monkeypatch)
    commit(store, 3, invalid=(9,))
    found = contributions(open_store(store.root), resamples=50)
    whole = contributions(open_store(store.root), resamples=50, out=tmp_path / "x.zarr")
    xr.testing.assert_allclose(found, whole, rtol=1e-12)
    assert found.attrs["invalid_rows"] == LENGTHS[9]
    assert int(found["count"][0]) == int(before["count"][0]) + 28 - LENGTHS[9]
    assert shards.read


def test_a_partial_result_does_not_grow(tmp_path: Path) -> None:
    """Rows whose points are still to come are shown as missing, and would stay so."""
    store = grown(tmp_path / "s", (0, 1))
    commit(store, 2, points=(0, 1))
    partial = lens(open_store(store.root, partial=True), "activations", resamples=20)
    assert partial.attrs["partial"]
    commit(store, 2, points=(2, 3))
    found = lens(open_store(store.root), "activations", resamples=20)
    assert not found.attrs["partial"]
    whole = lens(open_store(store.root), "activations", resamples=20, out=tmp_path / "x.zarr")
    xr.testing.assert_allclose(found, whole, rtol=1e-12)
    assert np.isfinite(found.kl_mean).all()


def stream() -> tuple[Any, list[int]]:
    """Four points of 330 rows in documents of eleven, which cross the borders of tasks of 64."""
    random = np.random.default_rng(0)
    h = random.normal(size=(4, 330, 6)) * np.array([5, 1, 1, 0.5, 2, 1]) + 2
    h[1] = 0.5 * h[0] + h[1]
    h[2] = np.tanh(h[1]) + 0.2 * h[2]
    return h, [11] * 30


def alike(found: xr.Dataset, whole: xr.Dataset) -> None:
    """Everything but what depends on how rows are cut into blocks and on a few rows' median."""
    for name in whole.data_vars:
        if name == "cka":
            np.testing.assert_allclose(found[name], whole[name], atol=0.1)
        elif not str(name).startswith(("cka_", "median")):
            np.testing.assert_allclose(found[name], whole[name], rtol=1e-4, atol=2e-6)


def test_the_moments_of_a_grown_store_are_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    h, lengths = stream()
    store = without(paired(tmp_path / "s", h, lengths), {1, 4, 5})
    place = store.root / "analysis" / "geometry.zarr"
    geometry(open_store(store.root), resamples=100)
    # Such few rows are read again sooner than their sums are.
    assert not (place / "state").exists()
    monkeypatch.setattr(geometry_kept, "SHARE", float("inf"))
    geometry(open_store(store.root), resamples=101)
    assert (place / "state" / "facts.json").exists()
    shards = Shards(monkeypatch)
    for tasks in ((4,), (1, 5)):
        for task in tasks:
            commit(store, task)
        shards.read.clear()
        found = geometry(open_store(store.root), resamples=101)
        assert shards.of("residual") == set(tasks)
        whole = geometry(open_store(store.root), resamples=101, out=tmp_path / f"{tasks}.zarr")
        assert shards.of("residual") > set(tasks)
        alike(found, whole)
    assert int(found["count"].sel(token_set="all")) == 330
    shards.read.clear()
    xr.testing.assert_identical(geometry(open_store(store.root), resamples=101), found)
    assert not shards.read
    # Other draws are other sums.
    geometry(open_store(store.root), resamples=102)
    assert shards.of("residual") == set(range(6))


def test_a_document_that_failed_later_takes_its_rows_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geometry_kept, "SHARE", float("inf"))
    h, lengths = stream()
    store = without(paired(tmp_path / "s", h, lengths), {5})
    geometry(open_store(store.root), resamples=100)
    # Document 29 lies in task 4 but for its last rows.
    commit(store, 5, invalid=(28,))
    found = geometry(open_store(store.root), resamples=100)
    assert int(found["count"].sel(token_set="all")) == 319
    alike(found, geometry(open_store(store.root), resamples=100, out=tmp_path / "x.zarr"))


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Rows of a map's source whose vectors are read."""
    rows, original = set[int](), Side.read

    def read(side: Side, number: int, pairs: Any) -> Any:
        if side.width == 6:
            rows.update(np.asarray(side.residual.axis.index)[side.rows[pairs]].tolist())
        return original(side, number, pairs)

    monkeypatch.setattr(Side, "read", read)
    return rows


def two_stores(folder: Path, late: set[int]) -> tuple[SmallStore, SmallStore]:
    """Stores of one corpus, of which some tasks are not committed yet; row 40 is massive."""
    h, lengths = stream()
    h[:, 40] *= 500
    other = np.random.default_rng(1).normal(size=(3, 330, 5)) + h[1:, :, :5]
    return (
        without(paired(folder / "a", h, lengths), late),
        without(paired(folder / "b", other, lengths), late),
    )


def test_maps_of_grown_stores_add_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_read: set[int]
) -> None:
    monkeypatch.setattr(map_kept, "SHARE", float("inf"))
    stores = two_stores(tmp_path, {1, 4, 5})
    out = tmp_path / "maps.zarr"

    def maps(place: Path | None = out, **more: Any) -> xr.Dataset:
        rows_read.clear()
        runs = [open_store(store.root) for store in stores]
        return linear_maps(*runs, out=place, resamples=20, **more)

    maps()
    for tasks in ((4,), (1, 5)):
        for task in tasks:
            for store in stores:
                commit(store, task)
        found, grown_rows = maps(), set(rows_read)
        whole = maps(tmp_path / f"{tasks[0]}.zarr")
        spared = rows_read - grown_rows
        assert {row // 64 for row in spared}.isdisjoint(tasks)
        read = [one.attrs["training_rows_read"] for one in (found, whole)]
        assert len(spared) == read[1] - read[0] > 0
        for name in ("train_rows", "validation_rows", "test_rows", "massive_rows"):
            assert found.attrs[name] == whole.attrs[name]
        assert found.attrs["massive_rows"] == 1
        for name in ("relative_error", "r2", "ridge", "baseline_mean_error", "r2_dimension"):
            np.testing.assert_allclose(found[name], whole[name], rtol=2e-5, atol=2e-6)
        # The same rows, shuffled in other groups.
        np.testing.assert_allclose(
            found["baseline_shuffled_error"], whole["baseline_shuffled_error"], rtol=0.2
        )
    again = maps(rank=2)
    assert again.attrs["training_rows_read"] == 0
    np.testing.assert_allclose(again["r2"], maps(None, rank=2)["r2"], rtol=1e-4, atol=1e-5)
    assert maps(seed=1).attrs["training_rows_read"] > 0


def test_maps_whose_rows_are_gone_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = two_stores(tmp_path, {5})
    out = tmp_path / "maps.zarr"

    def maps(place: Path) -> xr.Dataset:
        return linear_maps(*(open_store(s.root) for s in stores), out=place, resamples=20)

    monkeypatch.setattr(map_kept, "SHARE", 0.1)
    maps(out)
    # Such few rows are read again sooner than their moments are.
    assert not (out / "state").exists()
    monkeypatch.setattr(map_kept, "SHARE", float("inf"))
    shutil.rmtree(out)
    maps(out)
    assert (out / "state" / "facts.json").exists()
    # Documents 26 to 28 lie in task 4 but for the last one's rows.
    commit(stores[0], 5, invalid=(26, 27, 28))
    commit(stores[1], 5)
    found, whole = maps(out), maps(tmp_path / "whole.zarr")
    assert found.attrs["training_rows_read"] == whole.attrs["training_rows_read"]
    xr.testing.assert_allclose(found, whole)
