"""Interactions against loops over documents and splits, and what an unfinished sweep may show."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from depthscope.analysis import effect_means
from depthscope.analysis.interactions import interactions
from depthscope.analysis.store import open as open_store
from depthscope.storage.errors import Damage, RequestError

from .effects_store import SmallEffects, add_effects, commit_effects
from .small_store import build

#: The module, whose name in the package is the function's.
module = import_module("depthscope.analysis.interactions")

LAYERS = 4
MATRICES = ("effect_max", "effect_mean", "effect_low", "effect_high", "count")
BARS = (
    *("output_l2_max", "output_l2_mean", "output_l2_low", "output_l2_high"),
    *("output_kl_mean", "output_kl_low", "output_kl_high", "output_count"),
)


def store(tmp_path: Path, **options: Any) -> SmallEffects:
    return add_effects(build(tmp_path / "s", layers=LAYERS).root, **options)


def cell(
    effects: SmallEffects, name: str, at: tuple[int, ...], places: list[int] | None = None
) -> list[list[float]]:
    """Finite values by document and split of one scope, kind, part, source (and target)."""
    a, b, c, *inner = at
    found = []
    for document in range(len(effects.record.documents)) if places is None else places:
        values = [
            float(effects.values[name][(a, b, c, document, split, *inner)])
            for split in range(effects.record.splits)
        ]
        kept = [value for value in values if np.isfinite(value)]
        if kept:
            found.append(kept)
    return found


def check(result: xr.Dataset, effects: SmallEffects, places: list[int] | None = None) -> None:
    """Every maximum, mean and count against loops."""
    shape = result.effect_mean.shape
    for at in np.ndindex(shape):
        largest, means = (cell(effects, f"effect_{key}", at, places) for key in ("max", "mean"))
        assert int(result["count"].values[at]) == len(means)
        if not means:
            assert np.isnan([result[name].values[at] for name in MATRICES[:4]]).all()
            continue
        wanted = sum(sum(one) / len(one) for one in means) / len(means)
        assert result.effect_mean.values[at] == pytest.approx(wanted, rel=1e-12)
        assert result.effect_max.values[at] == max(max(one) for one in largest)
    for at in np.ndindex(shape[:-1]):
        for name in ("output_l2", "output_kl"):
            means = cell(effects, f"{name}_mean", at, places)
            found = result[f"{name}_mean"].values[at]
            assert int(result["output_count"].values[at]) == len(means)
            if not means:
                assert np.isnan(found)
                continue
            wanted = sum(sum(one) / len(one) for one in means) / len(means)
            assert found == pytest.approx(wanted, rel=1e-12)
        largest = cell(effects, "output_l2_max", at, places)
        if largest:
            assert result.output_l2_max.values[at] == max(max(one) for one in largest)


@pytest.mark.parametrize("cut", [None, 1, 3], ids=["whole", "each source", "uneven sources"])
def test_against_loops(tmp_path: Path, cut: int | None) -> None:
    effects = store(tmp_path, sources_per_task=cut)
    result = interactions(open_store(effects.root), resamples=30)
    check(result, effects)
    assert result.attrs["documents"] == {"all": 6, "future": 6}
    assert result.attrs["splits"] == {"all": 6, "future": 9}
    assert result.attrs["nonfinite_values"] == 0


def test_form_of_the_result(tmp_path: Path) -> None:
    effects = store(tmp_path)
    interactions(open_store(effects.root))
    path = effects.root / "analysis" / "interactions.zarr"
    result = xr.open_zarr(path, consolidated=False)
    axes = ("scope", "kind", "part", "source", "target")
    assert result.effect_mean.dims == axes
    assert dict(result.sizes) == dict(zip(axes, (2, 2, 3, LAYERS, LAYERS), strict=True))
    assert result.scope.values.tolist() == ["all", "future"]
    assert result.kind.values.tolist() == ["propagated", "local"]
    assert result.part.values.tolist() == ["layer", "attention", "mlp"]
    assert result.source.values.tolist() == result.target.values.tolist() == [0, 1, 2, 3]
    assert set(result.data_vars) == {*MATRICES, *BARS, "noise_floor", "output_noise_floor"}
    for name, variable in result.data_vars.items():
        assert variable.attrs["units"], name
        assert variable.attrs["long_name"], name
        if name in MATRICES:
            assert variable.dims == axes
        elif name in BARS:
            assert variable.dims == axes[:-1]
    assert result.attrs["parameters"]["effects"] == "skip"
    assert result.attrs["parameters"]["seed"] == 0
    assert result.attrs["inputs"][0]["identity"] == open_store(effects.root).info["identity"]
    above = result.effect_mean.sel(kind="propagated")
    inside = np.triu(np.ones((LAYERS, LAYERS), bool), 1)
    low, mean, high = (result[f"effect_{k}"].values[:, 0][..., inside]
                       for k in ("low", "mean", "high"))  # fmt: skip
    assert ((low < mean) & (mean < high)).all()
    # The rules of the layout come through: diagonals, and nothing before the source.
    assert (above.sel(scope="all", part="layer").values.diagonal() == 1).all()
    assert (above.sel(scope="future", part="mlp").values.diagonal() == 0).all()
    local = result.effect_mean.sel(kind="local").values
    assert np.isnan(local[..., np.tri(LAYERS, dtype=bool)]).all()
    assert np.isnan(result.output_l2_mean.sel(kind="local")).all()


def test_values_of_every_document_are_kept(tmp_path: Path) -> None:
    effects = store(tmp_path)
    interactions(open_store(effects.root), "skip")
    path = effects.root / "analysis" / "interactions.zarr"
    kept = xr.open_zarr(path, group="documents", consolidated=False)
    assert kept.document.values.tolist() == [0, 2, 4, 6, 8, 9]
    wanted = np.nanmean(effects.values["effect_mean"][1, 0, 2, :, :, 0, 3].astype(float), axis=1)
    found = kept.effect_mean.sel(scope="future", kind="propagated", part="mlp", source=0, target=3)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert kept.splits.sel(scope="future").values.tolist() == [1, 2, 1, 2, 1, 2]
    assert kept.splits.sel(scope="all").values.tolist() == [1] * 6


def test_intervals_are_those_of_resampled_documents(tmp_path: Path) -> None:
    root = build(tmp_path / "s", layers=LAYERS, lengths=[5] * 40, task_rows=64).root
    effects = add_effects(root, documents=range(40), documents_per_task=7)
    result = interactions(open_store(root), resamples=4000)
    means = np.nanmean(effects.values["effect_mean"][1, 0, 1, :, :, 1, 3].astype(float), axis=1)
    random = np.random.default_rng(3)
    drawn = means[random.integers(0, 40, (4000, 40))].mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    at = result.sel(scope="future", kind="propagated", part="attention", source=1, target=3)
    assert float(at.effect_low) == pytest.approx(low, abs=0.1 * (high - low))
    assert float(at.effect_high) == pytest.approx(high, abs=0.1 * (high - low))


def test_intervals_cover_the_truth(tmp_path: Path) -> None:
    """Every cell is a sample of 40 documents with one known mean."""
    truth = 2.0

    def known(values: dict[str, np.ndarray]) -> None:
        draw = np.random.default_rng(8).gamma(4.0, truth / 4, values["effect_mean"].shape)
        values["effect_mean"][...] = np.where(np.isnan(values["effect_mean"]), np.nan, draw)

    root = build(tmp_path / "s", layers=12, lengths=[5] * 40, task_rows=64).root
    add_effects(root, documents=range(40), splits=[(2,)] * 40, documents_per_task=16, change=known)
    result = interactions(open_store(root), resamples=400)
    inside = np.triu(np.ones((12, 12), bool), 1)
    low, high = (result[f"effect_{end}"].values[..., inside] for end in ("low", "high"))
    assert low.size == 2 * 2 * 3 * 66
    # Percentile intervals of 40 skewed documents cover a little less than they claim.
    assert 0.89 <= ((low <= truth) & (truth <= high)).mean() <= 0.98


def test_memory_bounds_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    effects = store(tmp_path, documents_per_task=1)
    whole = interactions(open_store(effects.root), resamples=50, out=tmp_path / "a.zarr")
    monkeypatch.setattr(effect_means, "SUMS_BYTES", 8 * 50 * 3)
    cut = interactions(open_store(effects.root), resamples=50, out=tmp_path / "b.zarr")
    xr.testing.assert_identical(whole, cut)
    monkeypatch.setattr(module, "BLOCK_BYTES", 8 * LAYERS * LAYERS * 2)
    cut = interactions(open_store(effects.root), resamples=50, out=tmp_path / "c.zarr")
    check(cut, effects)


def test_documents_without_a_split_are_dropped_and_counted(tmp_path: Path) -> None:
    effects = store(tmp_path, splits=[(1,), (), (1, 3), (2,), (), (1, 2)])
    result = interactions(open_store(effects.root), resamples=30)
    check(result, effects)
    # Changes at all positions need no split.
    assert result.attrs["documents"] == {"all": 6, "future": 4}
    assert result.attrs["dropped_documents"] == {"all": 0, "future": 2}
    future = result["count"].sel(scope="future", kind="propagated")
    inside = np.triu(np.ones((LAYERS, LAYERS), bool))
    assert (future.values[:, inside] == 4).all()


def test_no_valid_split_at_all(tmp_path: Path) -> None:
    effects = store(tmp_path, splits=[()] * 5 + [(1,)])
    run = open_store(effects.root).where("document < 9")
    with pytest.raises(RequestError, match="none of the 5 documents of effects skip has a valid"):
        interactions(run, out=tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()
    assert not (effects.root / "analysis").exists()


def test_values_that_are_not_finite_are_left_out_and_counted(tmp_path: Path) -> None:
    def spoil(values: dict[str, np.ndarray]) -> None:
        values["effect_mean"][1, 0, 0, 3, 0, 0, 2] = np.inf
        values["effect_max"][1, 0, 0, 3, 0, 0, 2] = np.inf
        values["effect_mean"][0, 0, 1, 2, 0, 1, 3] = np.nan

    effects = store(tmp_path, change=spoil)
    result = interactions(open_store(effects.root), resamples=30)
    check(result, effects)
    assert result.attrs["nonfinite_values"] == 2
    assert np.isfinite(result.effect_max.sel(kind="propagated", source=0)).all()


def test_noise_floor(tmp_path: Path) -> None:
    splits = [(1,), (), (1, 3), (2,), (1,), (1, 2)]
    effects = store(tmp_path, sources_per_task=2, splits=splits, scopes=("future",))
    result = interactions(open_store(effects.root), resamples=30)
    used = [0, 2, 3, 4, 5]
    np.testing.assert_array_equal(
        result.noise_floor, effects.values["noise_effect_max"][:, used].max(axis=(0, 1))
    )
    assert float(result.output_noise_floor) == effects.values["noise_output_l2_max"][:, used].max()


def test_chosen_layers_only(tmp_path: Path) -> None:
    effects = store(tmp_path, sources=(0, 2))
    result = interactions(open_store(effects.root), resamples=30)
    check(result, effects)
    assert np.isnan(result.effect_mean.sel(source=1)).all()
    assert result.attrs["nonfinite_values"] == 0


@pytest.mark.parametrize("cut", [None, 2])
def test_an_unfinished_sweep(tmp_path: Path, cut: int | None) -> None:
    tasks = 3 * (-(-LAYERS // cut) if cut else 1)
    done = (0, 2) if cut is None else (0, 1, 5)
    effects = store(tmp_path, committed=done, sources_per_task=cut)
    run = open_store(effects.root)
    with pytest.raises(
        RequestError, match=rf"{len(done)} of {tasks} tasks committed.*intervene .*--name skip.*"
    ):
        interactions(run)
    result = interactions(run, partial=True, resamples=30)
    if cut is None:
        check(result, effects, [0, 1, 4, 5])
        assert result.attrs["documents"] == {"all": 4, "future": 4}
    else:
        # Of the last two documents only the later sources are there.
        for source, places in ((0, [0, 1]), (1, [0, 1]), (2, [0, 1, 4, 5])):
            for target in range(source + 1, LAYERS):
                means = cell(effects, "effect_mean", (1, 0, 0, source, target), places)
                at = result.sel(scope="future", kind="propagated", part="layer", source=source)
                assert int(at["count"].sel(target=target)) == len(places)
                wanted = sum(sum(one) / len(one) for one in means) / len(means)
                assert float(at.effect_mean.sel(target=target)) == pytest.approx(wanted)
    assert not (result.effect_max > 500).any()
    assert result.noise_floor.max() < 1e-5
    assert result.attrs["nonfinite_values"] == 0
    # Once the rest is there, the saved result is not used any more.
    for task in set(range(tasks)) - set(done):
        commit_effects(effects, task)
    with pytest.raises(AssertionError):
        xr.testing.assert_identical(interactions(run, resamples=30), result)


def test_nothing_committed(tmp_path: Path) -> None:
    effects = store(tmp_path, committed=())
    with pytest.raises(RequestError, match="0 of 3 tasks committed") as raised:
        interactions(open_store(effects.root), partial=True)
    assert "--partial" not in str(raised.value)


def test_a_committed_shard_that_is_missing(tmp_path: Path) -> None:
    effects = store(tmp_path)
    commit_effects(effects, 1, ["effects/skip.zarr/effect_mean/c/0/0/0/9/0/0/0"])
    with pytest.raises(Damage, match="verify"):
        interactions(open_store(effects.root))


def test_which_effects(tmp_path: Path) -> None:
    root = build(tmp_path / "s", layers=LAYERS).root
    run = open_store(root)
    with pytest.raises(RequestError, match="has no effects: run depthscope intervene"):
        interactions(run)
    with pytest.raises(RequestError, match="no effects named 'other'"):
        interactions(run, "other")
    add_effects(root, "a", seed=1)
    first = interactions(run, resamples=20)
    add_effects(root, "b", seed=2)
    with pytest.raises(RequestError, match="choose with --effects: a, b"):
        interactions(run)
    xr.testing.assert_identical(interactions(run, "a", resamples=20), first)
    assert not interactions(run, "b", resamples=20).effect_mean.equals(first.effect_mean)
    add_effects(root, "foreign", store_identity="another")
    with pytest.raises(RequestError, match="another run of this store"):
        interactions(run, "foreign")
    twin = build(tmp_path / "t", layers=LAYERS).root
    with pytest.raises(RequestError, match="2 stores are open"):
        interactions(open_store([root, twin]), "a")


def test_a_selection_of_documents(tmp_path: Path) -> None:
    effects = store(tmp_path)
    run = open_store(effects.root)
    result = interactions(run.where("difficulty > 3"), resamples=30)
    check(result, effects, [2, 3, 4, 5])
    assert not (effects.root / "analysis").exists()
    with pytest.raises(RequestError, match="whole documents"):
        interactions(run.where("position > 1"))


def test_the_same_question_is_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    effects = store(tmp_path)
    first = interactions(open_store(effects.root), resamples=30)

    def fail(*_: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(module, "_save_documents", fail)
    xr.testing.assert_identical(interactions(open_store(effects.root), resamples=30), first)
    with pytest.raises(AssertionError, match="computed again"):
        interactions(open_store(effects.root), resamples=31)


def test_a_cluster_of_processes_gives_the_same(tmp_path: Path) -> None:
    effects = store(tmp_path, committed=(0, 2))
    run = open_store(effects.root)
    here = interactions(run, partial=True, resamples=20)
    there = interactions(
        run, partial=True, resamples=20, scheduler="local", workers=1, out=tmp_path / "c.zarr"
    )
    xr.testing.assert_identical(here, there)
