"""Effective depth: the rules on synthetic curves, the distribution over documents, no crossing."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from depthscope.analysis.contributions import contributions
from depthscope.analysis.depth import depth
from depthscope.analysis.depth_rules import cosine_depth, kl_depth, overlap_depth
from depthscope.analysis.store import open as open_store
from depthscope.storage.errors import RequestError

from . import small_store
from .small_store import SmallStore, build

summary = import_module("depthscope.analysis.summary")

LAYERS = 6
#: By layer; the means of the three rows last turn up through zero between layers 3 and 4.
COSINE = np.array(
    [
        [0.3, -0.2, 0.1, -0.4, 0.1, 0.5],
        [0.2, -0.1, 0.2, -0.1, 0.3, 0.4],
        [0.1, -0.3, 0.3, -0.2, -0.1, 0.3],
    ]
)
KL = np.array([4.0, 6.0, 3.5, 3.1, 2.9, 1.0, 0.0])
OVERLAP = np.array([0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 1.0])


def curved(
    tmp_path: Path,
    cosine: Any = COSINE,
    kl: Any = KL,
    overlap: Any = OVERLAP,
    spread: float = 0.0,
    **options: Any,
) -> SmallStore:
    """A store whose tokens have these values, shifted document by document by up to ``spread``."""

    def put(store: SmallStore) -> None:
        shift = np.random.default_rng(5).uniform(-spread, spread, len(store.lengths))
        shift = np.repeat(shift, store.lengths)
        store.cosine = np.asarray(cosine)[:, :, None] + shift
        store.norm_ratio = np.full(store.cosine.shape, 0.5)
        store.norm = np.ones((5, LAYERS, store.rows))
        shape = (LAYERS + 1, store.rows)
        store.lens = {
            "kl": np.broadcast_to(np.asarray(kl)[:, None] + 5 * shift, shape).copy(),
            "top5_overlap": np.broadcast_to(np.asarray(overlap)[:, None] + shift, shape).copy(),
            "top1_agreement": np.zeros(shape),
            "entropy": np.zeros(shape),
        }

    original, small_store._measure = small_store._measure, put
    try:
        return build(tmp_path / "s", layers=LAYERS, **options)
    finally:
        small_store._measure = original


def test_rules_on_curves() -> None:
    assert cosine_depth(COSINE) == 3
    assert kl_depth(KL[:-1]) == 4
    assert overlap_depth(OVERLAP[:-1]) == 4
    # Exactly zero, half and 0.3 count as reached, not below, not above.
    assert cosine_depth(np.array([[-1.0, 0.0, 1.0]])) == 0
    assert kl_depth(np.array([4.0, 2.0, 1.9])) == 2
    assert overlap_depth(np.array([0.3, 0.31])) == 1
    assert kl_depth(KL[:-1], 0.3) == 5
    assert overlap_depth(OVERLAP[:-1], 0.05) == 1


def test_the_last_of_several_crossings() -> None:
    assert cosine_depth(np.array([[-1, 1, -1, 1, -1, 2.0, 3]])) == 4


def test_the_mean_of_three_curves_decides() -> None:
    curves = np.array([[-1.0, 1, 1, 1], [-1, -1, 1, 1], [-1, -1, -0.5, 1]])
    assert cosine_depth(curves) == 1


@pytest.mark.parametrize(
    "found",
    [
        cosine_depth(np.array([[0.1, 0.2, 0.3]])),
        cosine_depth(np.array([[-0.1, -0.2, -0.3]])),
        cosine_depth(np.array([[0.1, 0.2, -0.3]])),
        cosine_depth(np.array([[-0.1]])),
        cosine_depth(np.array([[-0.1, np.nan, 0.1]])),
        kl_depth(np.array([2.0, 3.0, 1.6])),
        kl_depth(np.array([0.0, 0.0])),
        kl_depth(np.array([np.nan, np.nan])),
        overlap_depth(np.array([0.0, 0.2, 0.3])),
        overlap_depth(np.array([np.nan])),
    ],
)
def test_no_crossing(found: np.ndarray) -> None:
    assert np.isnan(found)


def test_rules_take_many_curves_at_once() -> None:
    many = np.stack([COSINE, -COSINE, np.abs(COSINE)])
    np.testing.assert_array_equal(cosine_depth(many), [3, 2, np.nan])
    np.testing.assert_array_equal(kl_depth(np.array([[4, 1.0], [4, 3], [1, 4]])), [1, np.nan, 0])
    assert cosine_depth(np.empty((0, 3, 4))).shape == (0,)


def test_depth_of_a_store(tmp_path: Path) -> None:
    result = depth(open_store(curved(tmp_path).root))
    assert result.measure.values.tolist() == ["cosine", "kl", "overlap"]
    # The stored overlap of layer 3 is 0.3 in float32, and a rounding above 0.3.
    np.testing.assert_array_equal(result.effective_depth, [3, 4, 3])
    np.testing.assert_allclose(result.ratio, [4 / 6, 5 / 6, 4 / 6])
    np.testing.assert_array_equal(result.low, result.effective_depth)
    np.testing.assert_array_equal(result.high, result.effective_depth)
    assert result.crossed.values.tolist() == [True] * 3
    assert result.crossed_share.values.tolist() == [1.0] * 3
    np.testing.assert_array_equal(result.share.sel(measure="kl"), [0, 0, 0, 0, 1, 0])
    saved = xr.open_zarr(tmp_path / "s" / "analysis" / "depth.zarr", consolidated=False)
    xr.testing.assert_identical(saved.load(), result)
    for name in result.data_vars:
        assert result[name].attrs["units"]
        assert result[name].attrs["long_name"]


def test_parameters(tmp_path: Path) -> None:
    run = open_store(curved(tmp_path).root)
    result = depth(run, kl_share=0.2, overlap_least=0.6)
    np.testing.assert_array_equal(result.effective_depth, [3, 5, 5])
    assert result.attrs["parameters"]["kl_share"] == 0.2
    with pytest.raises(RequestError, match=r"kl_share must lie between 0 and 1, not be 1\.5"):
        depth(run, kl_share=1.5)
    with pytest.raises(RequestError, match="unknown token set"):
        depth(run, tokens="some")  # type: ignore[arg-type]


def test_a_store_without_crossings_says_so(tmp_path: Path) -> None:
    store = curved(tmp_path, np.abs(COSINE), np.full(7, 2.0), np.full(7, 0.1))
    result = depth(open_store(store.root))
    assert result.crossed.values.tolist() == [False] * 3
    for name in ("effective_depth", "ratio", "low", "high", "ratio_low", "ratio_high"):
        assert np.isnan(result[name]).all(), name
    assert (result.crossed_share == 0).all()
    assert (result["count"] > 0).all()


def test_the_final_point_is_no_layer(tmp_path: Path) -> None:
    """The divergence falls to nothing only after the last layer, as it always does."""
    store = curved(tmp_path, kl=np.array([2.0, 2, 2, 2, 2, 2, 0]), overlap=[0, 0, 0, 0, 0, 0, 1.0])
    result = depth(open_store(store.root))
    assert result.crossed.values.tolist() == [True, False, False]


def test_the_distribution_is_that_of_resampled_documents(tmp_path: Path) -> None:
    lengths = tuple(range(2, 22))
    store = curved(tmp_path, spread=0.4, lengths=lengths, task_rows=256)
    result = depth(open_store(store.root), tokens="all", resamples=4000)
    random = np.random.default_rng(9)
    counts = np.array(lengths, float)
    first = np.cumsum(counts).astype(int) - counts.astype(int)
    # Every token of a document has the same values, so its sums are those times its tokens.
    cosine = store.cosine.astype(np.float32)[:, :, first].astype(float)
    overlap = store.lens["top5_overlap"].astype(np.float32)[:-1, first].astype(float)
    depths: list[list[float]] = [[], []]
    for _ in range(4000):
        drawn = random.integers(0, 20, 20)
        weights = counts[drawn] / counts[drawn].sum()
        curve = (cosine[:, :, drawn] * weights).sum(axis=2).mean(axis=0)
        turns = [at for at in range(LAYERS - 1) if curve[at] < 0 <= curve[at + 1]]
        depths[0].append(turns[-1] if turns else np.nan)
        above = np.flatnonzero((overlap[:, drawn] * weights).sum(axis=1) > 0.3)
        depths[1].append(float(above[0]) if len(above) else np.nan)
    for measure, wanted in zip(("cosine", "overlap"), depths, strict=True):
        share = [np.mean(np.array(wanted) == layer) for layer in range(LAYERS)]
        at = result.sel(measure=measure)
        assert max(share) < 0.97
        np.testing.assert_allclose(at.share, share, atol=0.04)
        assert float(at.crossed_share) == pytest.approx(np.isfinite(wanted).mean(), abs=0.04)
        inside = np.array(wanted)[np.isfinite(wanted)]
        low, high = np.percentile(inside, [2.5, 97.5])
        assert float(at.low) == pytest.approx(low, abs=1)
        assert float(at.high) == pytest.approx(high, abs=1)
        assert float(at.low) == int(at.low)


def test_token_sets(tmp_path: Path) -> None:
    store = curved(tmp_path)
    run = open_store(store.root)
    for tokens in ("content", "all"):
        result = depth(run, tokens=tokens, out=tmp_path / f"{tokens}.zarr")  # type: ignore[arg-type]
        assert result.attrs["parameters"]["token_set"] == tokens
        assert str(result.token_set.values) == tokens
    assert int(result["count"][0]) == 10
    inside = (store.position > 0) & ~store.special
    # A document of one token has no content.
    wanted = len(set(store.document[inside].tolist()))
    assert wanted < 10
    assert int(depth(run)["count"][0]) == wanted


def test_a_measure_that_the_store_lacks(tmp_path: Path) -> None:
    store = curved(tmp_path, lens_rows=np.arange(0))
    result = depth(open_store(store.root))
    assert result["count"].values.tolist()[1:] == [0, 0]
    assert int(result["count"][0]) > 0
    assert result.crossed.values.tolist() == [True, False, False]
    assert np.isnan(result.effective_depth[1:]).all()
    bare = curved(tmp_path / "b", lens_rows=np.arange(0))
    run_json = bare.root / "run.json"
    run_json.write_text(run_json.read_text().replace('"statistics"', '"nothing"'))
    with pytest.raises(RequestError, match="neither cosine nor kl"):
        depth(open_store(bare.root))


def test_saved_sums_are_used_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = curved(tmp_path)
    run = open_store(store.root)
    saved = contributions(run, seed=7, resamples=20)
    computed: list[str] = []
    true_reduce = summary.Summary._reduce

    def reduce(self: Any, *given: Any) -> None:
        computed.append(self.name)
        true_reduce(self, *given)

    monkeypatch.setattr(summary.Summary, "_reduce", reduce)
    first = depth(run, seed=3)
    assert computed == ["lens"]
    xr.testing.assert_identical(
        xr.open_zarr(store.root / "analysis" / "contributions.zarr", consolidated=False).load(),
        saved,
    )
    xr.testing.assert_identical(depth(run, seed=3), first)
    assert computed == ["lens"]


def test_a_selection_is_respected_and_not_saved(tmp_path: Path) -> None:
    store = curved(tmp_path)
    result = depth(open_store(store.root).where("document < 5"))
    assert int(result["count"][0]) == 4
    assert not (store.root / "analysis").exists()


def test_from_activations(tmp_path: Path) -> None:
    store = build(tmp_path / "s", layers=LAYERS, dtype="float32")
    run = open_store(store.root)
    worked = depth(run, "statistics", out=tmp_path / "a.zarr")
    again = depth(run, "activations", out=tmp_path / "b.zarr")
    np.testing.assert_array_equal(worked.effective_depth, again.effective_depth)
    np.testing.assert_allclose(worked.share, again.share, atol=0.01)
