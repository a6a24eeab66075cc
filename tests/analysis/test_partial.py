"""Stores whose tasks have committed some points only: what is shown, and what never is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from depthscope.analysis import contributions, run_query
from depthscope.analysis import store as store_module
from depthscope.analysis.results import Provenance
from depthscope.analysis.store import Run
from depthscope.storage.errors import RequestError

from .small_store import POISON, SmallStore, build, commit

THIRD = np.arange(1, 100, 3)
#: What the four tasks have committed: all, the lower half, nothing, two points with a gap.
BEGUN: dict[int, Sequence[tuple[int, int]]] = {0: [(0, 3)], 1: [(0, 1)], 3: [(1, 1), (3, 3)]}

Begun = Mapping[int, Sequence[tuple[int, int]]]


def open_partial(*stores: SmallStore) -> Run:
    return store_module.open([store.root for store in stores], partial=True)


def has(begun: Begun, task: int, point: int) -> bool:
    return any(a <= point <= b for a, b in begun.get(task, ()))


def begin(store: SmallStore, begun: Begun) -> SmallStore:
    """Turn a whole store into one with these commits; what they do not cover is gone or poison."""
    for task in range(-(-store.rows // store.task_rows)):
        (store.root / f"commits/{task:06d}/0-3.json").unlink()
        for points in begun.get(task, ()):
            commit(store, task, points)
    for name, points in (
        ("residual", store.points),
        ("attention_output", range(1, 4)),
        ("mlp_output", range(1, 4)),
    ):
        path = store.root / "activations.zarr" / name
        array = zarr.open_array(path, mode="r+")
        assert array.shards is not None
        size = array.shards[1]
        for place, point in enumerate(points):
            for shard in range(-(-array.shape[1] // size)):
                task = owners(store)[shard * size]
                if has(begun, task, point):
                    continue
                if shard % 2:
                    (path / f"c/{place}/{shard}/0").unlink()
                else:
                    array[place, shard * size : (shard + 1) * size] = POISON
    return store


def owners(store: SmallStore) -> list[int]:
    """The task that owns each stored row of activations."""
    rows = store.activation_rows.tolist()
    size = store.task_rows if len(rows) == store.rows else 8
    return [rows[place // size * size] // store.task_rows for place in range(len(rows))]


def expected(
    store: SmallStore, begun: Begun, values: np.ndarray, points: Sequence[int]
) -> tuple[list[int], np.ndarray]:
    """Rows that are shown, and planes of values of those rows, one plane and row at a time."""
    shown = []
    for row, owner in zip(store.activation_rows.tolist(), owners(store), strict=True):
        if owner in begun and row // store.task_rows in begun:
            shown.append((row, owner))
    out = np.full((len(points), len(shown), values.shape[-1]), np.nan)
    for plane, point in enumerate(points):
        for place, (row, owner) in enumerate(shown):
            if has(begun, owner, point):
                out[plane, place] = values[plane, row]
    return [row for row, _ in shown], out


@pytest.mark.parametrize(
    "selection",
    [{}, {"activation_rows": THIRD}, {"points": (0, 3), "dtype": "float32"}],
    ids=["all", "third", "points"],
)
def test_what_each_task_has_committed(tmp_path: Path, selection: dict[str, Any]) -> None:
    store = begin(build(tmp_path / "s", **selection), BEGUN)
    run = open_partial(store)
    rows, residual = expected(store, BEGUN, store.h[list(store.points)], store.points)
    assert np.isnan(residual).any()
    assert run.residual.row.values.tolist() == rows
    assert run.residual.point.values.tolist() == list(store.points)
    np.testing.assert_array_equal(run.residual.values.astype(np.float64), residual)
    for name, values in (("attention_output", store.a), ("mlp_output", store.m)):
        rows, wanted = expected(store, BEGUN, values, range(1, 4))
        found = getattr(run, name)
        assert found.row.values.tolist() == rows
        np.testing.assert_array_equal(found.values.astype(np.float64), wanted)
    assert sorted(run.sql("SELECT row FROM activation_rows").df()["row"]) == rows
    visible = [row for row in range(store.rows) if row // store.task_rows in BEGUN]
    assert sorted(run.tokens.df()["row"]) == visible


def test_numbers_come_with_the_last_point(tmp_path: Path) -> None:
    store = begin(build(tmp_path / "s"), BEGUN)
    rows = [*range(32), *range(96, 100)]
    run = open_partial(store)
    for array in (run.norm, run.norm_ratio, run.cosine, run.lens_values.kl):
        assert array.row.values.tolist() == rows
    np.testing.assert_array_equal(run.norm.values, store.norm[:, :, rows].astype(np.float32))
    np.testing.assert_array_equal(
        run.lens_values.entropy.values, store.lens["entropy"][:, rows].astype(np.float32)
    )


def test_without_asking_only_complete_tasks_are_shown(tmp_path: Path) -> None:
    store = begin(build(tmp_path / "s"), BEGUN)
    run = store_module.open(store.root)
    for array in (run.residual, run.mlp_output, run.norm, run.lens_values.kl):
        assert array.row.values.tolist() == list(range(32))
    np.testing.assert_array_equal(run.residual.values.astype(np.float64), store.h[:, :32])
    assert len(run.tokens.df()) == 32
    # Commits side by side, or over one another, make a task complete as one does.
    commit(store, 3, (0, 2))
    assert store_module.open(store.root).norm.row.values.tolist() == [*range(32), *range(96, 100)]


@pytest.mark.parametrize("seed", range(3))
def test_any_selection_is_what_numpy_selects(tmp_path: Path, seed: int) -> None:
    store = begin(build(tmp_path / "s", activation_rows=THIRD if seed % 2 else None), BEGUN)
    residual = open_partial(store).residual
    values = residual.values.astype(np.float64)
    random = np.random.default_rng(seed)
    rows = residual.sizes["row"]
    for key in (int(rows - 1), slice(2, rows - 1), random.integers(0, rows, 15).tolist()):
        for point in (0, 2, [0, 3], slice(1, 4)):
            found = residual.isel(point=point, row=key)
            np.testing.assert_array_equal(found.astype(np.float64), values[point][..., key, :])
            part = found.isel(hidden=slice(2, 5)).astype(np.float64)
            np.testing.assert_array_equal(part, values[point][..., key, 2:5])


def test_a_predicate_over_begun_tasks(tmp_path: Path) -> None:
    store = begin(build(tmp_path / "s"), BEGUN)
    run = open_partial(store).where("position % 2 = 1")
    rows, residual = expected(store, BEGUN, store.h, range(4))
    chosen = [place for place, row in enumerate(rows) if store.position[row] % 2]
    assert run.residual.row.values.tolist() == [rows[place] for place in chosen]
    np.testing.assert_array_equal(run.residual.values.astype(np.float64), residual[:, chosen])
    assert open_partial(store).at([33, 97]).norm.row.values.tolist() == [97]


def test_points_that_nothing_shown_has_are_left_out(tmp_path: Path) -> None:
    begun: Begun = {1: [(0, 0)], 2: [(0, 1)]}
    store = begin(build(tmp_path / "s"), begun)
    run = open_partial(store)
    assert run.residual.point.values.tolist() == [0, 1]
    assert run.points == (0, 1)
    _, residual = expected(store, begun, store.h[:2], (0, 1))
    np.testing.assert_array_equal(run.residual.values.astype(np.float64), residual)
    with pytest.raises(RequestError, match="point 3 is not stored"):
        run_query(run, "SELECT row FROM tokens", points=[3])
    assert store_module.open(store.root).residual.shape == (4, 0, 8)
    few = begin(build(tmp_path / "t", points=(2, 3)), begun)
    assert open_partial(few).residual.shape == (0, 64, 8)


def test_several_stores(tmp_path: Path) -> None:
    whole = build(tmp_path / "a", seed=1, points=(0, 1, 3))
    begun: Begun = {1: [(0, 1)]}
    second = begin(build(tmp_path / "b", seed=2), begun)
    residual = open_partial(whole, second).residual
    assert residual.point.values.tolist() == [0, 1, 3]
    wanted = whole.h[[0, 1, 3]]
    _, other = expected(second, begun, second.h[[0, 1, 3]], (0, 1, 3))
    np.testing.assert_array_equal(
        residual.values.astype(np.float64), np.concatenate([wanted, other], axis=1)
    )


def test_vectors_of_an_answer(tmp_path: Path) -> None:
    store = begin(build(tmp_path / "s"), BEGUN)
    out = tmp_path / "rows.npz"
    run_query(
        store.root,
        "SELECT row FROM activation_rows ORDER BY row DESC",
        points=[0, 3],
        out=out,
        partial=True,
    )
    rows, residual = expected(store, BEGUN, store.h[[0, 3]], (0, 3))
    found = np.load(out)
    assert found["row"].tolist() == rows[::-1]
    np.testing.assert_array_equal(found["residual"], residual[:, ::-1])


def test_a_reduction_leaves_out_what_is_not_committed(tmp_path: Path) -> None:
    store = begin(build(tmp_path / "s"), BEGUN)
    result = contributions(open_partial(store), source="activations", resamples=10)
    rows = store.visible
    for layer in range(store.layers):
        used = [
            row for row in rows if has(BEGUN, row // 32, layer) and has(BEGUN, row // 32, layer + 1)
        ]
        wanted = store.norm_ratio[:, layer, used].mean(axis=1)
        found = result.norm_ratio_mean.sel(token_set="all", layer=layer)
        np.testing.assert_allclose(found.values, wanted, rtol=1e-6)


def test_a_result_knows_which_points_it_saw(tmp_path: Path) -> None:
    store = begin(build(tmp_path / "s"), BEGUN)
    runs = [open_partial(store)]
    commit(store, 1, (2, 2))
    runs.append(open_partial(store))
    prints = {Provenance.of(run, "contributions", {}).fingerprint for run in runs}
    assert len(prints) == 2
