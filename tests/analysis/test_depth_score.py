"""The depth score: known answers, loops over documents, trends, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from depthscope.analysis.depth_score import depth_score
from depthscope.analysis.store import open as open_store
from depthscope.storage.errors import RequestError
from scipy import stats

from .effects_store import SmallEffects, add_effects
from .small_store import build

LAYERS = 6
LEVELS = np.array([3, 1, 2, 1, 3, 2, 10, 10, 1, 2, 3, 10])
FUTURE = (1, 0, 0)


def store(tmp_path: Path, levels: Any = None, **options: Any) -> SmallEffects:
    levels = LEVELS if levels is None else levels
    root = build(tmp_path / "s", layers=LAYERS, lengths=[5] * len(levels), task_rows=64).root
    path = root / "documents.parquet"
    table = pq.read_table(path).append_column("hardness", pa.array(list(levels)))
    pq.write_table(table, path)
    return add_effects(root, **{"documents": range(len(levels)), **options})


def constant(profile: Any) -> Any:
    """Effects of every document and split: e_s for every later layer, and for the output."""

    def change(values: dict[str, np.ndarray]) -> None:
        for source, effect in enumerate(profile):
            for name in ("effect_max", "effect_mean"):
                values[name][1, 0, :, :, :, source, source + 1 :] = effect
            for name in ("output_l2_max", "output_l2_mean"):
                values[name][1, 0, :, :, :, source] = effect
        for name, array in values.items():
            if name in ("effect_max", "effect_mean") or name.startswith("output_l2"):
                array[1, 0][:, ::2, 1:] = np.nan

    return change


def profiles(effects: SmallEffects, document: int) -> tuple[list[float], list[float]]:
    """e_s of one document by loops: on later layers, and on the output."""
    matrix = effects.values["effect_mean"][FUTURE][document].astype(float)
    output = effects.values["output_l2_mean"][FUTURE][document].astype(float)
    layers, outputs = [], []
    for source in range(LAYERS):
        later = [float(np.nanmean(matrix[:, source, to])) for to in range(source + 1, LAYERS)]
        if later:
            layers.append(sum(later) / len(later))
        outputs.append(float(np.nanmean(output[:, source])))
    return layers, outputs


def centre(profile: Any) -> float:
    return sum(s * e for s, e in enumerate(profile)) / sum(profile)


def score(effects: SmallEffects, **options: Any) -> xr.Dataset:
    return depth_score(open_store(effects.root), "hardness", **{"resamples": 50, **options})


@pytest.mark.parametrize("layer", [0, 1, 4])
def test_one_layer_that_matters(tmp_path: Path, layer: int) -> None:
    result = score(store(tmp_path, change=constant([float(s == layer) for s in range(LAYERS)])))
    for name in ("score", "score_max", "low", "high"):
        np.testing.assert_allclose(result[name], layer, atol=1e-12)


def test_all_layers_alike(tmp_path: Path) -> None:
    result = score(store(tmp_path, change=constant([0.25] * LAYERS)))
    for name in ("score", "score_max", "low", "high"):
        np.testing.assert_allclose(result[name].sel(measure="layer"), (LAYERS - 2) / 2)
        np.testing.assert_allclose(result[name].sel(measure="output"), (LAYERS - 1) / 2)
    assert (result.trend_slope == 0).all()
    assert np.isnan(result.trend_p).all()


def test_the_last_layer_counts_for_the_output_only(tmp_path: Path) -> None:
    result = score(store(tmp_path, change=constant([0, 0, 0, 0, 0, 1])))
    assert np.isnan(result.score.sel(measure="layer")).all()
    np.testing.assert_array_equal(result.score.sel(measure="output"), LAYERS - 1)


def test_against_loops(tmp_path: Path) -> None:
    effects = store(tmp_path)
    result = score(effects)
    assert result.level.values.tolist() == [1, 2, 3, 10]
    for at, measure in enumerate(("layer", "output")):
        for level in (1, 2, 3, 10):
            mine = np.flatnonzero(level == LEVELS)
            pooled = np.mean([profiles(effects, d)[at] for d in mine], axis=0)
            cell = result.sel(measure=measure, level=level)
            assert float(cell.score) == pytest.approx(centre(pooled))
            assert int(cell["count"]) == len(mine) == 3
            np.testing.assert_allclose(cell.profile.values[: len(pooled)], pooled)
            assert np.isnan(cell.profile.values[len(pooled) :]).all()
            assert float(cell.low) <= float(cell.score) <= float(cell.high)
    matrix = effects.values["effect_max"][FUTURE].astype(float)
    pooled = [
        np.mean([np.nanmax(matrix[LEVELS == 2, :, s, to]) for to in range(s + 1, LAYERS)])
        for s in range(LAYERS - 1)
    ]
    assert float(result.score_max.sel(measure="layer", level=2)) == pytest.approx(centre(pooled))


def test_the_trend_is_that_of_single_documents(tmp_path: Path) -> None:
    effects = store(tmp_path)
    result = score(effects)
    for at, measure in enumerate(("layer", "output")):
        scores = [centre(profiles(effects, document)[at]) for document in range(len(LEVELS))]
        wanted = stats.kendalltau(LEVELS, scores)
        cell = result.sel(measure=measure)
        assert float(cell.trend_tau) == pytest.approx(wanted.statistic)
        assert float(cell.trend_p) == pytest.approx(wanted.pvalue)
        assert float(cell.trend_slope) == pytest.approx(stats.linregress(LEVELS, scores).slope)
        assert int(cell.trend_count) == len(LEVELS)
        kept = xr.open_zarr(
            effects.root / "analysis" / "depth_score.zarr", group="documents", consolidated=False
        )
        np.testing.assert_allclose(kept.score.sel(measure=measure), scores)
        assert kept.level_number.values.tolist() == LEVELS.tolist()


def test_a_rising_score_is_found(tmp_path: Path) -> None:
    def deeper(values: dict[str, np.ndarray]) -> None:
        for name in ("effect_max", "effect_mean"):
            for document, level in enumerate(LEVELS):
                values[name][1, 0, 0, document, :, min(level, 4) - 1, :] *= 20

    result = score(store(tmp_path, change=deeper)).sel(measure="layer")
    assert (np.diff(result.score) > 0.4).all()
    assert float(result.trend_tau) > 0.7
    assert float(result.trend_p) < 0.005
    assert float(result.trend_slope_low) > 0


def test_intervals_are_those_of_resampled_documents(tmp_path: Path) -> None:
    effects = store(tmp_path, levels=["a"] * 30 + ["b"] * 30)
    result = score(effects, resamples=4000)
    ours = np.array([profiles(effects, document)[0] for document in range(30)])
    random = np.random.default_rng(4)
    drawn = [centre(ours[random.integers(0, 30, 30)].mean(axis=0)) for _ in range(4000)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    cell = result.sel(measure="layer", level="a")
    assert float(cell.low) == pytest.approx(low, abs=0.1 * (high - low))
    assert float(cell.high) == pytest.approx(high, abs=0.1 * (high - low))


def test_form_of_the_result(tmp_path: Path) -> None:
    effects = store(tmp_path)
    score(effects)
    path = effects.root / "analysis" / "depth_score.zarr"
    result = xr.open_zarr(path, consolidated=False)
    assert result.measure.values.tolist() == ["layer", "output"]
    assert result.score.dims == result["count"].dims == ("measure", "level")
    for name in result.data_vars:
        assert result[name].attrs["units"]
        assert result[name].attrs["long_name"]
    assert "Kendall" in result.trend_tau.attrs["long_name"]
    assert result.attrs["parameters"]["field"] == "hardness"
    assert result.attrs["ordered"] is True
    assert score(effects).identical(result.load())


def test_documents_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    def spoil(values: dict[str, np.ndarray]) -> None:
        values["effect_mean"][1, 0, 0, 4, :, 0, 3] = np.nan

    levels = [None if n == 7 else int(level) for n, level in enumerate(LEVELS)]
    splits = [() if n == 1 else (1, 2) for n in range(len(LEVELS))]
    effects = store(tmp_path, levels=levels, splits=splits, change=spoil)
    result = score(effects)
    # Document 1 has no split, 4 lacks one effect on layers, 7 has no level.
    assert result["count"].sel(measure="layer").values.tolist() == [2, 3, 2, 2]
    assert result["count"].sel(measure="output").values.tolist() == [2, 3, 3, 2]
    assert result.attrs["documents_without_level"] == 1
    assert result.attrs["documents_without_effects"] == 2
    assert result.attrs["dropped_documents"]["future"] == 1


def test_words_have_scores_but_no_trend(tmp_path: Path) -> None:
    names = np.array(["hard", "easy", "odd"] * 4)
    effects = store(tmp_path, levels=names)
    result = score(effects)
    assert result.level.values.tolist() == ["easy", "hard", "odd"]
    assert np.isfinite(result.score).all()
    assert np.isnan(result.trend_p).all()
    assert result.attrs["ordered"] is False
    given = score(effects, order=["easy", "odd", "hard"], out=tmp_path / "given.zarr")
    assert given.level.values.tolist() == ["easy", "odd", "hard"]
    ranks = [["easy", "odd", "hard"].index(name) for name in names]
    scores = [centre(profiles(effects, document)[0]) for document in range(len(names))]
    wanted = stats.kendalltau(ranks, scores).pvalue
    assert float(given.trend_p.sel(measure="layer")) == pytest.approx(wanted)


def test_parts(tmp_path: Path) -> None:
    effects = store(tmp_path)
    mlp = score(effects, part="mlp")
    matrix = effects.values["output_l2_mean"][1, 0, 2].astype(float)
    pooled = np.nanmean(matrix[LEVELS == 3], axis=1).mean(axis=0)
    assert float(mlp.score.sel(measure="output", level=3)) == pytest.approx(centre(pooled))


def test_what_is_refused(tmp_path: Path) -> None:
    effects = store(tmp_path)
    run = open_store(effects.root)
    with pytest.raises(RequestError, match="no field 'depth'"):
        depth_score(run, "depth", "skip")
    add_effects(effects.root, "now", scopes=("all",))
    with pytest.raises(RequestError, match="have scope all, and the depth score needs future"):
        depth_score(run, "hardness", "now")
    add_effects(effects.root, "bare", parts=("mlp",))
    with pytest.raises(RequestError, match="have part mlp, and the depth score needs layer"):
        depth_score(run, "hardness", "bare")
    add_effects(effects.root, "few", sources=(0, 2))
    with pytest.raises(RequestError, match="changed 2 of 6 layers"):
        depth_score(run, "hardness", "few")
    add_effects(effects.root, "late", committed=(0, 1))
    with pytest.raises(RequestError, match=r"--name late, or add --partial"):
        depth_score(run, "hardness", "late")
    some = depth_score(run, "hardness", "late", partial=True, resamples=20)
    assert int(some["count"].sel(measure="layer").sum()) == 4
