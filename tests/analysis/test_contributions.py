"""Contributions against plain loops over tokens, known answers, and the sources against another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import xarray as xr
from depthscope.analysis import per_document, summary
from depthscope.analysis.analyze import analyze
from depthscope.analysis.contributions import contributions
from depthscope.analysis.store import open as open_store
from depthscope.storage.errors import RequestError

from .small_store import LENGTHS, SmallStore, build, commit

Source = Literal["statistics", "activations"]
SOURCES: tuple[Source, ...] = ("statistics", "activations")
PARTS = ("attention", "mlp", "layer")


def rows_of(store: SmallStore, token_set: str, invalid: tuple[int, ...] = ()) -> list[int]:
    """Visible rows of a token set, one at a time."""
    return [
        row
        for row in store.visible.tolist()
        if store.document[row] not in invalid
        and (token_set == "all" or (store.position[row] > 0 and not store.special[row]))
    ]


def ratio_and_cosine(store: SmallStore, part: str, layer: int, row: int) -> tuple[float, float]:
    h, a, m = (x[layer, row] for x in (store.h, store.a, store.m))
    added, base = {"attention": (a, h), "mlp": (m, h + a), "layer": (a + m, h)}[part]
    size, length = float(np.linalg.norm(added)), float(np.linalg.norm(base))
    cosine = 0.0 if size * length == 0 else float(added @ base / (size * length))
    return size / max(length, 1e-6), cosine


def check(result: xr.Dataset, store: SmallStore, invalid: tuple[int, ...] = ()) -> None:
    """Every mean, maximum and count against a loop over tokens."""
    for token_set in ("all", "content"):
        rows = rows_of(store, token_set, invalid)
        assert int(result["count"].sel(token_set=token_set)) == len(rows)
        for part in PARTS:
            for layer in range(store.layers):
                values = [ratio_and_cosine(store, part, layer, row) for row in rows]
                ratios, cosines = zip(*values, strict=True)
                at = result.sel(token_set=token_set, part=part, layer=layer)
                assert float(at.norm_ratio_mean) == pytest.approx(np.mean(ratios), rel=1e-5)
                assert float(at.norm_ratio_max) == pytest.approx(max(ratios), rel=1e-5)
                assert float(at.cosine_mean) == pytest.approx(np.mean(cosines), abs=1e-6)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "options",
    [{}, {"committed": (0, 2, 3), "invalid": (4,)}, {"dtype": "float32", "committed": (1, 2)}],
    ids=["bfloat16", "incomplete", "float32"],
)
def test_against_loops_over_tokens(tmp_path: Path, source: Source, options: dict[str, Any]) -> None:
    store = build(tmp_path / "s", **options)
    result = contributions(open_store(store.root), source, resamples=50)
    invalid = options.get("invalid", ())
    check(result, store, invalid)
    failed = np.isin(store.document[store.visible], invalid).sum()
    assert result.attrs["invalid_rows"] == failed
    assert result.attrs["nonfinite_values"] == 0


def test_both_sources_agree_on_the_stored_rows(tmp_path: Path) -> None:
    store = build(tmp_path / "s", activation_rows=np.arange(0, 100, 3), committed=(0, 1, 3))
    run = open_store(store.root)
    raw = contributions(run, "activations")
    again = contributions(run.at(run.residual.row.values), "statistics")
    assert int(raw["count"].sel(token_set="all")) < 40
    for name in raw.data_vars:
        np.testing.assert_allclose(raw[name], again[name], rtol=1e-5, atol=1e-6)


def test_form_of_the_result(tmp_path: Path) -> None:
    store = build(tmp_path / "s")
    contributions(open_store(store.root))
    result = xr.open_zarr(store.root / "analysis" / "contributions.zarr", consolidated=False)
    assert dict(result.sizes) == {"token_set": 2, "part": 3, "layer": 3}
    assert result.token_set.values.tolist() == ["all", "content"]
    assert result.part.values.tolist() == list(PARTS)
    assert result.layer.values.tolist() == [0, 1, 2]
    assert set(result.data_vars) == {
        *(f"norm_ratio_{end}" for end in ("mean", "max", "low", "high")),
        *(f"cosine_{end}" for end in ("mean", "low", "high")),
        "count",
    }
    for name, variable in result.data_vars.items():
        axes = ("token_set",) if name == "count" else ("token_set", "part", "layer")
        assert variable.dims == axes
        assert variable.attrs["units"]
        assert variable.attrs["long_name"]
    run = open_store(store.root)
    assert result.attrs["inputs"][0]["identity"] == run.info["identity"]
    assert result.attrs["parameters"]["seed"] == 0
    assert result.attrs["parameters"]["resamples"] == 1000
    assert result.attrs["depthscope"]
    for mean, low, high in (
        (result.norm_ratio_mean, result.norm_ratio_low, result.norm_ratio_high),
        (result.cosine_mean, result.cosine_low, result.cosine_high),
    ):
        assert ((low < mean) & (mean < high)).all()


def test_values_of_every_document_are_kept(tmp_path: Path) -> None:
    store = build(tmp_path / "s", committed=(0, 2, 3), invalid=(7,))
    contributions(open_store(store.root))
    path = store.root / "analysis" / "contributions.zarr"
    kept = xr.open_zarr(path, group="documents", consolidated=False)
    seen = np.unique(store.document[store.visible])
    assert kept.document.values.tolist() == seen.tolist()
    for token_set in ("all", "content"):
        rows = rows_of(store, token_set, (7,))
        for document in seen.tolist():
            mine = [row for row in rows if store.document[row] == document]
            at = kept.sel(document=document, token_set=token_set)
            assert int(at.rows) == len(mine)
            values = [ratio_and_cosine(store, "mlp", 1, row) for row in mine]
            one = at.sel(part="mlp", layer=1)
            assert int(one.norm_ratio_count) == int(one.cosine_count) == len(mine)
            assert float(one.norm_ratio_sum) == pytest.approx(sum(v[0] for v in values))
            assert float(one.cosine_sum) == pytest.approx(sum(v[1] for v in values), abs=1e-6)
            largest = max((v[0] for v in values), default=-np.inf)
            assert float(one.norm_ratio_max) == pytest.approx(largest)
    assert int(kept.invalid_rows.sel(document=7)) == 16


def test_intervals_are_those_of_resampled_documents(tmp_path: Path) -> None:
    store = build(tmp_path / "s", lengths=tuple(range(1, 25)), task_rows=64)
    result = contributions(open_store(store.root), resamples=4000)
    random = np.random.default_rng(11)
    rows = rows_of(store, "content")
    values = {row: ratio_and_cosine(store, "attention", 2, row)[0] for row in rows}
    documents = [
        [values[row] for row in rows if store.document[row] == document]
        for document in np.unique(store.document[rows])
    ]
    means = []
    for _ in range(4000):
        drawn = random.integers(0, len(documents), len(documents))
        means.append(np.mean([value for number in drawn for value in documents[number]]))
    at = result.sel(token_set="content", part="attention", layer=2)
    low, high = np.percentile(means, [2.5, 97.5])
    assert float(at.norm_ratio_low) == pytest.approx(low, abs=0.1 * (high - low))
    assert float(at.norm_ratio_high) == pytest.approx(high, abs=0.1 * (high - low))


def no_attention(h: np.ndarray, a: np.ndarray, m: np.ndarray) -> None:
    a[:] = 0


def no_mlp(h: np.ndarray, a: np.ndarray, m: np.ndarray) -> None:
    m[:] = 0


def identity_layer(h: np.ndarray, a: np.ndarray, m: np.ndarray) -> None:
    a[1] = m[1] = 0
    h[2] = h[1]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("change", "zero"),
    [
        (no_attention, {"part": "attention"}),
        (no_mlp, {"part": "mlp"}),
        (identity_layer, {"layer": 1}),
    ],
)
def test_known_answers(
    tmp_path: Path, source: Source, change: Callable[..., None], zero: dict[str, Any]
) -> None:
    store = build(tmp_path / "s", change=change)
    result = contributions(open_store(store.root), source, resamples=20)
    for name, variable in result.drop_vars("count").items():
        assert (variable.sel(zero) == 0).all(), name
    others = result.norm_ratio_mean.drop_sel({key: [value] for key, value in zero.items()})
    assert (others > 0.1).all()
    if "part" in zero:
        # What the layer adds is what its only sublayer adds.
        other = "mlp" if zero["part"] == "attention" else "attention"
        xr.testing.assert_allclose(
            result.sel(part="layer", drop=True), result.sel(part=other, drop=True)
        )


@pytest.mark.parametrize("source", SOURCES)
def test_values_that_are_not_finite_are_left_out_and_counted(
    tmp_path: Path, source: Source
) -> None:
    row = 10

    def spoil(h: np.ndarray, a: np.ndarray, m: np.ndarray) -> None:
        a[1, row] = np.inf

    clean = build(tmp_path / "clean")
    store = build(tmp_path / "s", change=spoil)
    result = contributions(open_store(store.root), source, resamples=20)
    # The ratios and cosines of attention, of the MLP and of the layer, in one row.
    assert result.attrs["nonfinite_values"] == 6
    assert int(result["count"].sel(token_set="all")) == 100
    values = [
        ratio_and_cosine(clean, "attention", 1, other)[0] for other in range(100) if other != row
    ]
    mean = result.norm_ratio_mean.sel(token_set="all", part="attention", layer=1)
    assert float(mean) == pytest.approx(np.mean(values), rel=1e-5)
    assert np.isfinite(result.norm_ratio_max).all()


@pytest.mark.parametrize("source", SOURCES)
def test_blocks_and_slices_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Source
) -> None:
    store = build(tmp_path / "s", committed=(0, 2, 3))
    run = open_store(store.root).where("true")
    whole = contributions(run, source, resamples=20)
    monkeypatch.setattr(per_document, "LEAST_BYTES", 1)
    monkeypatch.setattr(per_document, "SLICE_BYTES", 8 * 2 * 9 * 5)
    steps: list[tuple[int, int]] = []
    blocks: list[tuple[int, int]] = []
    true_reduce = per_document.PerDocument.reduce

    def reduce(self: Any, first: int, last: int) -> Any:
        blocks.append((first, last))
        return true_reduce(self, first, last)

    monkeypatch.setattr(per_document.PerDocument, "reduce", reduce)
    cut = contributions(
        run, source, resamples=20, progress=lambda *step: steps.append(step), workers=2
    )
    for name in ("norm_ratio_mean", "norm_ratio_max", "cosine_mean", "count"):
        np.testing.assert_allclose(cut[name], whole[name], rtol=1e-12)
    # One block for each of the nine documents with rows, and each of them reduced once.
    assert sorted(blocks) == [(number, number + 1) for number in range(9)]
    assert len(steps) > 10
    assert steps[-1][0] == steps[-1][1]


def test_a_selection_is_respected_and_not_saved(tmp_path: Path) -> None:
    store = build(tmp_path / "s")
    run = open_store(store.root).where("subject = 'maths' AND position < 4")
    result = contributions(run)
    rows = [r for r in rows_of(store, "content") if store.document[r] % 2 and store.position[r] < 4]
    assert int(result["count"].sel(token_set="content")) == len(rows)
    values = [ratio_and_cosine(store, "layer", 0, row)[0] for row in rows]
    mean = result.norm_ratio_mean.sel(token_set="content", part="layer", layer=0)
    assert float(mean) == pytest.approx(np.mean(values), rel=1e-5)
    assert not (store.root / "analysis").exists()
    contributions(run, out=tmp_path / "kept.zarr")
    kept = xr.open_zarr(tmp_path / "kept.zarr", consolidated=False)
    assert kept.attrs["parameters"]["predicates"] == ["subject = 'maths' AND position < 4"]
    xr.testing.assert_allclose(kept.drop_attrs(), result.drop_attrs())


def test_two_stores_as_one(tmp_path: Path) -> None:
    first = build(tmp_path / "a", seed=1, committed=(0, 1))
    second = build(tmp_path / "b", seed=2, committed=(2, 3), invalid=(7,))
    result = contributions(open_store([first.root, second.root]))
    for token_set in ("all", "content"):
        values = [
            ratio_and_cosine(store, "mlp", 2, row)[1]
            for store, invalid in ((first, ()), (second, (7,)))
            for row in rows_of(store, token_set, invalid)
        ]
        at = result.sel(token_set=token_set, part="mlp", layer=2)
        assert int(at["count"]) == len(values)
        assert float(at.cosine_mean) == pytest.approx(np.mean(values), abs=1e-6)


def test_the_same_question_is_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = build(tmp_path / "s", committed=(0, 1, 2))
    computed: list[str] = []
    true_reduce = summary.Summary._reduce

    def reduce(self: Any, *given: Any) -> None:
        computed.append(self.name)
        true_reduce(self, *given)

    monkeypatch.setattr(summary.Summary, "_reduce", reduce)
    first = contributions(open_store(store.root))
    xr.testing.assert_identical(contributions(open_store(store.root)), first)
    assert len(computed) == 1
    contributions(open_store(store.root), seed=1)
    assert len(computed) == 2
    twin = build(tmp_path / "t")
    (store.root / "statistics.zarr").rename(tmp_path / "old")
    (twin.root / "statistics.zarr").rename(store.root / "statistics.zarr")
    commit(store, 3)
    check(contributions(open_store(store.root), seed=1), twin)
    assert len(computed) == 3
    assert [p.name for p in (store.root / "analysis").iterdir()] == ["contributions.zarr"]


def test_a_failure_leaves_the_old_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = build(tmp_path / "s")
    first = contributions(open_store(store.root))

    def fail(*_: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(summary.Summary, "_summarise", fail)
    with pytest.raises(OSError, match="no space"):
        contributions(open_store(store.root), seed=9)
    monkeypatch.undo()
    assert [p.name for p in (store.root / "analysis").iterdir()] == ["contributions.zarr"]
    xr.testing.assert_identical(contributions(open_store(store.root)), first)


def test_a_cluster_of_processes_gives_the_same(tmp_path: Path) -> None:
    store = build(tmp_path / "s", committed=(0, 2, 3))
    run = open_store(store.root)
    here = contributions(run, "activations", resamples=20)
    there = contributions(
        run, "activations", resamples=20, scheduler="local", workers=1, out=tmp_path / "c.zarr"
    )
    xr.testing.assert_identical(here, there)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    bare = build(tmp_path / "a", sublayers=False, points=(0, 3))
    with pytest.raises(RequestError, match="--sublayers"):
        contributions(open_store(bare.root), "activations")
    few = build(tmp_path / "b", points=(0, 3))
    with pytest.raises(RequestError, match=r"points 1, 2 .*--points all"):
        contributions(open_store(few.root), "activations")
    with pytest.raises(RequestError, match="nothing is committed"):
        contributions(open_store(build(tmp_path / "c", committed=()).root))
    with pytest.raises(RequestError, match="unknown source"):
        contributions(open_store(few.root), "memory")  # type: ignore[arg-type]
    assert not (few.root / "analysis").exists()


def test_analyze(tmp_path: Path) -> None:
    store = build(tmp_path / "s", lens_rows=np.arange(0))
    lines: list[str] = []
    found = analyze(store.root, report=lines.append, resamples=20)
    assert list(found) == ["contributions"]
    assert xr.open_zarr(found["contributions"], consolidated=False).attrs["documents"] == {
        "all": len(LENGTHS),
        "content": len({store.document[r] for r in rows_of(store, "content")}),
    }
    assert any("100 rows" in line for line in lines)
    again = analyze(store.root, ["contributions"], source="activations", resamples=20)
    assert again["contributions"].name == "contributions_activations.zarr"
    with pytest.raises(RequestError, match="--lens-rows none"):
        analyze(store.root, ["lens"])
    with pytest.raises(RequestError, match="there are contributions, lens"):
        analyze(store.root, ["lense"])
