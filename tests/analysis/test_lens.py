"""The lens against plain loops over tokens, known answers, and the sources against another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import xarray as xr
from depthscope.analysis import logits as logits_module
from depthscope.analysis.lens import compare_with_last, lens
from depthscope.analysis.logits import HeadLogits
from depthscope.analysis.store import open as open_store
from depthscope.storage.errors import RequestError
from safetensors.numpy import save_file

from .small_store import SmallStore, build, lens_of

Source = Literal["statistics", "activations"]
SOURCES: tuple[Source, ...] = ("statistics", "activations")
NAMES = ("kl", "top5_overlap", "top1_agreement", "entropy")
SOME = np.arange(0, 100, 3)


def rows_of(store: SmallStore, rows: np.ndarray, token_set: str) -> list[int]:
    return [
        row
        for row in rows.tolist()
        if token_set == "all" or (store.position[row] > 0 and not store.special[row])
    ]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("lens_rows", [None, SOME], ids=["all", "some"])
def test_against_loops_over_tokens(
    tmp_path: Path, source: Source, lens_rows: np.ndarray | None
) -> None:
    store = build(tmp_path / "s", lens_rows=lens_rows)
    result = lens(open_store(store.root), source, resamples=50)
    for token_set in ("all", "content"):
        rows = rows_of(store, store.lens_rows, token_set)
        assert int(result["count"].sel(token_set=token_set)) == len(rows)
        for point in range(4):
            sums = np.zeros(4)
            for row in rows:
                sums += lens_of(
                    store.h[point, row], store.h[-1, row], store.weight, store.unembedding
                )
            for name, total in zip(NAMES, sums, strict=True):
                found = result[f"{name}_mean"].sel(token_set=token_set, point=point)
                assert float(found) == pytest.approx(total / len(rows), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("source", SOURCES)
def test_at_the_last_point(tmp_path: Path, source: Source) -> None:
    store = build(tmp_path / "s", committed=(0, 2), invalid=(0,))
    last = lens(open_store(store.root), source).sel(point=3)
    assert (last.kl_mean == 0).all()
    assert (last.kl_low == 0).all()
    assert (last.kl_high == 0).all()
    assert (last.top5_overlap_mean == 1).all()
    assert (last.top1_agreement_mean == 1).all()


@pytest.mark.parametrize("source", SOURCES)
def test_identity_layers(tmp_path: Path, source: Source) -> None:
    def still(h: np.ndarray, a: np.ndarray, m: np.ndarray) -> None:
        a[:] = m[:] = 0
        h[:] = h[0]

    result = lens(open_store(build(tmp_path / "s", change=still).root), source)
    np.testing.assert_allclose(result.kl_mean, 0, atol=1e-7)
    assert (result.top5_overlap_mean == 1).all()
    np.testing.assert_array_equal(result.entropy_mean, result.entropy_mean.isel(point=[0] * 4))


def test_form_of_the_result(tmp_path: Path) -> None:
    store = build(tmp_path / "s", lens_rows=SOME, committed=(0, 1, 3))
    lens(open_store(store.root))
    result = xr.open_zarr(store.root / "analysis" / "lens.zarr", consolidated=False)
    assert dict(result.sizes) == {"token_set": 2, "point": 4}
    assert result.point.values.tolist() == [0, 1, 2, 3]
    wanted = {f"{name}_mean" for name in NAMES} | {"kl_low", "kl_high", "count"}
    assert set(result.data_vars) == wanted
    assert result.kl_mean.dims == ("token_set", "point")
    assert result.kl_mean.attrs["units"] == "nat"
    assert all(variable.attrs["long_name"] for variable in result.data_vars.values())
    early = result.isel(point=slice(3))
    assert ((early.kl_low < early.kl_mean) & (early.kl_mean < early.kl_high)).all()
    kept = xr.open_zarr(
        store.root / "analysis" / "lens.zarr", group="documents", consolidated=False
    )
    assert {f"{name}_sum" for name in NAMES} < set(kept.data_vars)


def test_from_some_points(tmp_path: Path) -> None:
    whole = lens(open_store(build(tmp_path / "a").root), "activations")
    some = lens(open_store(build(tmp_path / "b", points=(1, 3)).root), "activations")
    xr.testing.assert_allclose(some.drop_attrs(), whole.sel(point=[1, 3]).drop_attrs())


def test_rows_without_a_lens(tmp_path: Path) -> None:
    store = build(tmp_path / "s", lens_rows=np.arange(0), activation_rows=SOME)
    run = open_store(store.root)
    with pytest.raises(RequestError, match="--lens-rows none"):
        lens(run)
    assert int(lens(run, "activations")["count"].sel(token_set="all")) == len(SOME)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    short = build(tmp_path / "a", points=(0, 1))
    with pytest.raises(RequestError, match="last point, 3"):
        lens(open_store(short.root), "activations")
    headless = build(tmp_path / "b")
    (headless.root / "head.json").unlink()
    with pytest.raises(RequestError, match="--no-head"):
        lens(open_store(headless.root), "activations")


HEADS: list[dict[str, Any]] = [
    {"norm": "rmsnorm", "soft_cap": None, "scale": 1.0, "bias": False},
    {"norm": "layernorm", "soft_cap": None, "scale": 0.25, "bias": True},
    {"norm": "rmsnorm", "soft_cap": 3.0, "scale": 2.0, "bias": True},
]


@pytest.mark.parametrize("head", HEADS, ids=["plain", "layernorm", "cap"])
def test_logits_of_every_kind_of_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: dict[str, Any]
) -> None:
    random = np.random.default_rng(5)
    weight, shift = random.normal(size=(2, 6)).astype(np.float32)
    matrix, bias = (random.normal(size=s).astype(np.float32) for s in ((13, 6), (13,)))
    arrays = {"norm.weight": weight, "unembedding.weight": matrix}
    if head["bias"]:
        arrays |= {"norm.bias": shift, "unembedding.bias": bias}
    save_file(arrays, tmp_path / "head.safetensors")
    settings = {"format": 1, "epsilon": 1e-3} | {k: v for k, v in head.items() if k != "bias"}
    (tmp_path / "head.json").write_text(json.dumps(settings))
    rows = random.normal(size=(4, 6)).astype(np.float32)
    monkeypatch.setattr(logits_module, "BLOCK_BYTES", 4 * 6 * 5)
    found = HeadLogits(tmp_path).logits(rows)
    for row, values in zip(rows.astype(np.float64), found, strict=True):
        centred = row - row.mean() if head["norm"] == "layernorm" else row
        normed = centred / np.sqrt((centred**2).mean() + 1e-3) * weight
        for token in range(13):
            logit = float(matrix[token] @ (normed + (shift if head["bias"] else 0)))
            logit = head["scale"] * (logit + (float(bias[token]) if head["bias"] else 0))
            if head["soft_cap"]:
                logit = head["soft_cap"] * np.tanh(logit / head["soft_cap"])
            assert float(values[token]) == pytest.approx(logit, rel=1e-4, abs=1e-5)


def test_rows_that_are_not_finite_have_no_lens() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 4, 9)).astype(np.float32)
    logits[0, 1, 2] = np.nan
    logits[2, 3, 5] = np.inf
    values = compare_with_last(logits)
    broken = np.isnan(values)
    assert broken[:, 0, 1].all()
    assert broken[:, :, 3].all()
    assert broken.sum() == 4 * 4


def test_few_tokens() -> None:
    values = compare_with_last(np.zeros((2, 1, 3), np.float32))
    np.testing.assert_allclose(values[:, 0, 0], [0, 1, 1, np.log(3)], rtol=1e-6)
